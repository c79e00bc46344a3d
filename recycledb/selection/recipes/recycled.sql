-- @description Every sample that a teacher has rewritten in both halves, whatever any student says of it (V1).
--
-- Reflection-Tuning (Li et al., arXiv:2310.11716): the reflected instruction with its reflected response. No scores are
-- asked. Where a sample has several, that with the smallest parent and then the smallest id counts.
--
-- @param teacher teacher: whose reflections
-- @param dataset dataset = none: only samples of this dataset

WITH sight AS (
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
),
choice AS (
    SELECT
        v.variant_id,
        row_number() OVER (PARTITION BY v.sample_id ORDER BY v.parent_id, v.variant_id) AS nth
    FROM variants v
    JOIN sight s ON s.sample_id = v.sample_id
    WHERE v.kind = 'reflect_both' AND v.is_current = 1 AND v.teacher = :teacher
)
SELECT variant_id, 'rewritten in both halves' AS reason
FROM choice
WHERE nth = 1
