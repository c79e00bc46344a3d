-- @description As cherry on the samples as they came, by a small student such as GPT-2 (weak to strong).
--
-- Superfiltering (Li et al., ACL 2024, arXiv:2402.00530): template `none`, 1024 tokens, the answer's statistics only.
-- Without --student, the one with prompt = "none" is taken.
--
-- @param student small-student: whose scores rank
-- @param dataset dataset = none: only samples of this dataset
-- @param metric choice(ppl, loss) = ppl: what IFD is a ratio of
-- @param top top = 10%: how many, as a number or as a share of the samples in sight (rounded down)

WITH sight AS (
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
),
score AS (
    SELECT
        sample_id, variant_id,
        CASE WHEN :metric = 'loss' THEN ifd_loss ELSE ifd_ppl END AS ifd
    FROM scores
    WHERE student = :student AND kind = 'origin' AND is_current = 1
),
ranked AS (
    SELECT c.variant_id, c.ifd, row_number() OVER (ORDER BY c.ifd DESC, s.place) AS rank
    FROM score c
    JOIN sight s ON s.sample_id = c.sample_id
    WHERE c.ifd < 1
)
SELECT variant_id, rank, 'ifd < 1, among the highest' AS reason, ifd
FROM ranked
WHERE rank <= CAST(:top_count AS BIGINT)
OR rank * 100 <= CAST(:top_percent AS DOUBLE PRECISION) * (SELECT count(*) FROM sight)
