-- @description The samples whose answers a student finds hardest to predict and yet not misaligned: highest IFD below 1.
--
-- Cherry data (Li et al., NAACL 2024, arXiv:2308.12032), on the samples as they came or on one kind of reflection.
-- Where a sample has several variants of that kind, that with the highest IFD below 1 counts, then the smallest id.
--
-- @param student student: whose scores rank
-- @param kind choice(origin, reflect_instruction, reflect_response, reflect_both) = origin: which variants to rank
-- @param teacher teacher-or-best: whose reflections (a kind other than origin); best takes, per sample, the highest IFD below 1
-- @param dataset dataset = none: only samples of this dataset
-- @param metric choice(ppl, loss) = ppl: what IFD is a ratio of
-- @param top top = 5%: how many, as a number or as a share of the samples in sight (rounded down)

WITH sight AS (
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
),
score AS (
    SELECT
        sample_id, variant_id,
        CASE WHEN :metric = 'loss' THEN ifd_loss ELSE ifd_ppl END AS ifd
    FROM scores
    WHERE student = :student AND kind = :kind AND is_current = 1
    AND (kind = 'origin' OR :teacher = 'best' OR teacher = :teacher)
),
choice AS (
    SELECT
        c.variant_id, c.ifd, s.place,
        row_number() OVER (PARTITION BY c.sample_id ORDER BY c.ifd DESC, c.variant_id) AS nth
    FROM score c
    JOIN sight s ON s.sample_id = c.sample_id
    WHERE c.ifd < 1
),
ranked AS (
    SELECT variant_id, ifd, row_number() OVER (ORDER BY ifd DESC, place) AS rank FROM choice WHERE nth = 1
)
SELECT variant_id, rank, 'ifd < 1, among the highest' AS reason, ifd
FROM ranked
WHERE rank <= CAST(:top_count AS BIGINT)
OR rank * 100 <= CAST(:top_percent AS DOUBLE PRECISION) * (SELECT count(*) FROM sight)
