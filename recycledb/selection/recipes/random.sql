-- @description A random choice of samples that depends on the seed alone: the baseline that no claim is honest without.
--
-- The order is by a hash of seed and variant, so two samples keep their order when others are added.
--
-- @param kind text = origin: which kind of variant
-- @param dataset dataset = none: only samples of this dataset
-- @param seed number = 0: another seed gives another choice
-- @param top top = 10%: how many, as a number or as a share of the samples in sight (rounded down)
-- @order random(seed = :seed, most = :top)

-- @pool
SELECT v.variant_id
FROM current_variants v
JOIN (
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
) AS s ON s.sample_id = v.sample_id
WHERE v.kind = :kind
ORDER BY s.place, v.variant_id;

-- @pick
SELECT i.variant_id, i.rank, 'drawn' AS reason
FROM ordering_items i
WHERE i.ordering_id = :ordering AND (
    i.rank <= CAST(:top_count AS BIGINT)
    OR i.rank * 100 <= CAST(:top_percent AS DOUBLE PRECISION) * (
        SELECT count(DISTINCT sample_id) FROM sample_order WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset
    )
)
