-- @description Complexity times quality, highest first, without what is too similar to something better.
--
-- DEITA (Liu et al., ICLR 2024, arXiv:2312.15685): the product of two judges' expected ratings (measures of the method `expected`, each
-- with its own student), then the filter by cosine similarity. A sample without one of the two ratings is left out.
--
-- @param complexity text = deita_complexity: the measure of complexity, as named in recycledb.toml
-- @param quality text = deita_quality: the measure of quality
-- @param encoder student: whose vectors say what is alike
-- @param pooling choice(last, mean, weighted_mean) = last: how its states are combined
-- @param part choice(whole, row, question, answer) = whole: which text
-- @param threshold number = 0.9: the highest similarity to a sample that was kept
-- @param dataset dataset = none: only samples of this dataset
-- @param top top = 6000: how many, as a number or as a share of the samples in sight (rounded down)
-- @order filter(encoder = :encoder, pooling = :pooling, part = :part, threshold = :threshold, most = :top)

-- @pool
WITH sight AS (
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
),
rated AS (
    SELECT sample_id, variant_id,
        avg(CASE WHEN measure = :complexity THEN value END) * avg(CASE WHEN measure = :quality THEN value END) AS score
    FROM measures
    WHERE measure IN (:complexity, :quality) AND kind = 'origin' AND is_current = 1
    GROUP BY sample_id, variant_id
)
SELECT r.variant_id, r.score
FROM rated r
JOIN sight s ON s.sample_id = r.sample_id
WHERE r.score IS NOT NULL
ORDER BY s.place, r.variant_id;

-- @pick
SELECT i.variant_id, i.rank, 'complexity times quality, and unlike those before' AS reason, i.gain AS evol
FROM ordering_items i
WHERE i.ordering_id = :ordering AND (
    i.rank <= CAST(:top_count AS BIGINT)
    OR i.rank * 100 <= CAST(:top_percent AS DOUBLE PRECISION) * (
        SELECT count(DISTINCT sample_id) FROM sample_order WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset
    )
)
