-- @description The variants that no other beats in two measures at once; with --top also the next layers.
--
-- Higher is better in both. An IFD of 1 or more counts as none. Each variant's layer is recorded: in the first, none is better in one
-- measure without being worse in the other.
--
-- @param first text: a measure, as NAME/MODEL; within a layer it decides the order
-- @param second text: another one
-- @param kind text = origin: which kind of variant
-- @param dataset dataset = none: only samples of this dataset
-- @param top top = none: how many; none for the first layer
-- @order pareto(most = :top)

-- @pool
WITH sight AS (
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
),
known AS (
    SELECT m.variant_id, s.place, m.measure || '/' || m.model AS measure, m.value
    FROM measures m
    JOIN sight s ON s.sample_id = m.sample_id
    WHERE m.is_current = 1 AND m.kind = :kind AND m.value IS NOT NULL AND (m.measure <> 'ifd' OR m.value < 1)
    AND m.measure || '/' || m.model IN (:first, :second)
)
SELECT a.variant_id, a.value AS one, b.value AS other
FROM known a
JOIN known b ON b.variant_id = a.variant_id AND b.measure = :second
WHERE a.measure = :first
ORDER BY a.place, a.variant_id;

-- @pick
SELECT i.variant_id, i.rank, i.reason, i.gain AS layer
FROM ordering_items i
WHERE i.ordering_id = :ordering AND (
    i.rank <= CAST(:top_count AS BIGINT)
    OR i.rank * 100 <= CAST(:top_percent AS DOUBLE PRECISION) * (
        SELECT count(DISTINCT sample_id) FROM sample_order WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset
    )
    OR (CAST(:top_count AS BIGINT) IS NULL AND CAST(:top_percent AS DOUBLE PRECISION) IS NULL AND i.gain = 1)
)
