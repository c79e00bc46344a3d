-- @description The samples that students rate highest, each student weighted by its number of parameters.
--
-- SelectIT (Liu et al., NeurIPS 2024, arXiv:2402.16705): the model level over the sentence level of the measure `selectit`. With one
-- student that is its own sentence level. A sample that one of the students could not rate is left out.
--
-- @param measure text = selectit: the measure, as named in recycledb.toml
-- @param kind text = origin: which kind of variant
-- @param dataset dataset = none: only samples of this dataset
-- @param top top = 20%: how many, as a number or as a share of the samples in sight (rounded down)

WITH sight AS (
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
),
rated AS (
    SELECT m.sample_id, m.variant_id, count(m.value) AS students,
        sum(coalesce(s.parameters, 1) * m.value) / sum(CASE WHEN m.value IS NOT NULL THEN coalesce(s.parameters, 1) END) AS score
    FROM measures m
    JOIN students s ON s.student = m.model
    WHERE m.measure = :measure AND m.kind = :kind AND m.is_current = 1
    GROUP BY m.sample_id, m.variant_id
),
ranked AS (
    SELECT r.variant_id, r.score, row_number() OVER (ORDER BY r.score DESC, s.place, r.variant_id) AS rank
    FROM rated r
    JOIN sight s ON s.sample_id = r.sample_id
    WHERE r.students > 0 AND r.students = (SELECT max(students) FROM rated)
)
SELECT variant_id, rank, 'rated among the highest' AS reason, score
FROM ranked
WHERE rank <= CAST(:top_count AS BIGINT)
OR rank * 100 <= CAST(:top_percent AS DOUBLE PRECISION) * (SELECT count(*) FROM sight)
