-- @description The hardest samples below an IFD of 1, and of these the ones that stand for the most others.
--
-- Superfiltering.D (Li et al., ACL 2024, arXiv:2402.00530): the pool by a small student's IFD, then facility location over the vectors
-- of a sentence encoder. The ordering is recorded; it is computed again only if the pool has changed.
--
-- @param student small-student: whose IFD makes the pool
-- @param encoder student: whose vectors say what is alike
-- @param pooling choice(mean, weighted_mean, last) = mean: how its states are combined
-- @param part choice(row, whole, question, answer) = row: which text
-- @param dataset dataset = none: only samples of this dataset
-- @param pool top = 20%: how many the pool holds
-- @param top top = 2%: how many are taken
-- @order facility(encoder = :encoder, pooling = :pooling, part = :part, most = :top)

-- @pool
WITH sight AS (
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
),
ranked AS (
    SELECT c.variant_id, row_number() OVER (ORDER BY c.ifd_ppl DESC, s.place) AS rank
    FROM scores c
    JOIN sight s ON s.sample_id = c.sample_id
    WHERE c.student = :student AND c.kind = 'origin' AND c.is_current = 1 AND c.ifd_ppl < 1
)
SELECT variant_id FROM ranked
WHERE rank <= CAST(:pool_count AS BIGINT)
OR rank * 100 <= CAST(:pool_percent AS DOUBLE PRECISION) * (SELECT count(*) FROM sight)
ORDER BY rank;

-- @pick
SELECT i.variant_id, i.rank, 'stands for the most that are left' AS reason, i.gain
FROM ordering_items i
WHERE i.ordering_id = :ordering AND (
    i.rank <= CAST(:top_count AS BIGINT)
    OR i.rank * 100 <= CAST(:top_percent AS DOUBLE PRECISION) * (
        SELECT count(DISTINCT sample_id) FROM sample_order WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset
    )
)
