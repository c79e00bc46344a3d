-- @description The samples nearest to those of a query dataset, each query in turn.
--
-- RDS+ (Ivison et al., arXiv:2503.01807): a student's position-weighted mean of hidden states, cosine similarity, round-robin over the
-- queries. Add the examples of the task as a dataset of its own and embed both.
--
-- @param queries dataset: the dataset of the task's examples
-- @param encoder student: whose vectors say what is alike
-- @param pooling choice(weighted_mean, mean, last) = weighted_mean: how its states are combined
-- @param part choice(whole, row, question, answer) = whole: which text
-- @param kind text = origin: which kind of variant
-- @param dataset dataset = none: only samples of this dataset
-- @param top top = 10000: how many, as a number or as a share of the samples in sight (rounded down)
-- @order round_robin(encoder = :encoder, pooling = :pooling, part = :part, queries = :queries, most = :top)

-- @pool
SELECT v.variant_id
FROM current_variants v
JOIN (
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
) AS s ON s.sample_id = v.sample_id
WHERE v.kind = :kind AND v.sample_id NOT IN (SELECT sample_id FROM dataset_samples WHERE dataset = :queries)
ORDER BY s.place, v.variant_id;

-- @pick
SELECT i.variant_id, i.rank, i.reason, i.gain AS similarity
FROM ordering_items i
WHERE i.ordering_id = :ordering AND (
    i.rank <= CAST(:top_count AS BIGINT)
    OR i.rank * 100 <= CAST(:top_percent AS DOUBLE PRECISION) * (
        SELECT count(DISTINCT sample_id) FROM sample_order WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset
    )
)
