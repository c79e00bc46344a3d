-- @description The samples with the longest answers in a student's tokens: the baseline to beat.
--
-- Long is more (Zhao et al., ICML 2024, arXiv:2402.04833): the 1,000 longest answers. The number of tokens is that of A_direct, which
-- ends at the student's max_length.
--
-- @param student student: whose tokens
-- @param kind text = origin: which kind of variant
-- @param dataset dataset = none: only samples of this dataset
-- @param top top = 1000: how many, as a number or as a share of the samples in sight (rounded down)

WITH sight AS (
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
),
ranked AS (
    SELECT m.variant_id, m.value, row_number() OVER (ORDER BY m.value DESC, s.place, m.variant_id) AS rank
    FROM measures m
    JOIN sight s ON s.sample_id = m.sample_id
    WHERE m.measure = 'length' AND m.model = :student AND m.kind = :kind AND m.is_current = 1 AND m.value > 0
)
SELECT variant_id, rank, 'among the longest' AS reason, value AS tokens
FROM ranked
WHERE rank <= CAST(:top_count AS BIGINT)
OR rank * 100 <= CAST(:top_percent AS DOUBLE PRECISION) * (SELECT count(*) FROM sight)
