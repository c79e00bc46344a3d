-- @description For each sample, the reflection that is worth learning from under one student, or nothing (V2).
--
-- Selective Reflection-Tuning (Li et al., ACL 2024 Findings, arXiv:2402.10110), as released:
--
--     if ifd(Q) > ifd(ori):                        the new instruction is harder: keep it
--         rifd(QA) < rifd(Q) ? QA : Q              and the better answer, if it makes its instruction easier to guess
--     else:
--         rifd(A) < rifd(ori) ? A : ori
--     keep the candidate if its ifd < 1 and its rifd < 1
--
-- ori = origin, Q = reflect_instruction, A = reflect_response, QA = reflect_both. A comparison with a missing score is
-- false. Where a sample has several variants of a kind from one teacher, the one with the smallest id counts, and QA
-- is one that was made from that Q.
--
-- @param student student: whose scores decide
-- @param teacher teacher-or-best: whose reflections; best decides for each teacher, and of what is kept takes, per sample, the highest IFD
-- @param dataset dataset = none: only samples of this dataset
-- @param metric choice(ppl, loss) = ppl: what IFD and rIFD are ratios of
-- @param keep choice(reflected, all, candidates) = reflected: reflected is QA and A as published, all adds Q and ori, candidates adds those that fail the bounds (to look at)
-- @param top top = none: of what is kept only the highest IFD, N samples or a share of the samples in sight

WITH
ordered AS (
    SELECT sample_id, row_number() OVER (ORDER BY dataset, position) AS place
    FROM dataset_samples
    WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset
),
sight AS (
    SELECT sample_id, min(place) AS place FROM ordered GROUP BY sample_id
),
score AS MATERIALIZED (
    SELECT
        sample_id, variant_id, parent_id, kind, teacher,
        CASE WHEN :metric = 'loss' THEN ifd_loss ELSE ifd_ppl END AS ifd,
        CASE WHEN :metric = 'loss' THEN rifd_loss ELSE rifd_ppl END AS rifd
    FROM scores
    WHERE student = :student AND is_current = 1
),
-- What a teacher made of a sample, each kind once.
q AS MATERIALIZED (
    SELECT sample_id, teacher, variant_id, ifd, rifd,
        row_number() OVER (PARTITION BY sample_id, teacher ORDER BY variant_id) AS nth
    FROM score WHERE kind = 'reflect_instruction' AND (:teacher = 'best' OR teacher = :teacher)
),
a AS MATERIALIZED (
    SELECT sample_id, teacher, variant_id, ifd, rifd,
        row_number() OVER (PARTITION BY sample_id, teacher ORDER BY variant_id) AS nth
    FROM score WHERE kind = 'reflect_response' AND (:teacher = 'best' OR teacher = :teacher)
),
qa AS MATERIALIZED (
    SELECT parent_id, variant_id, ifd, rifd, row_number() OVER (PARTITION BY parent_id ORDER BY variant_id) AS nth
    FROM score WHERE kind = 'reflect_both'
),
made AS MATERIALIZED (
    SELECT sample_id, teacher FROM q WHERE nth = 1
    UNION
    SELECT sample_id, teacher FROM a WHERE nth = 1
),
branch AS (
    SELECT
        o.sample_id, m.teacher,
        o.variant_id AS o_id, o.ifd AS o_ifd, o.rifd AS o_rifd,
        q.variant_id AS q_id, q.ifd AS q_ifd, q.rifd AS q_rifd,
        a.variant_id AS a_id, a.ifd AS a_ifd, a.rifd AS a_rifd,
        qa.variant_id AS qa_id, qa.ifd AS qa_ifd, qa.rifd AS qa_rifd,
        CASE
            WHEN q.ifd > o.ifd AND qa.rifd < q.rifd THEN 'reflect_both'
            WHEN q.ifd > o.ifd THEN 'reflect_instruction'
            WHEN a.rifd < o.rifd THEN 'reflect_response'
            ELSE 'origin'
        END AS kind
    FROM score o
    LEFT JOIN made m ON m.sample_id = o.sample_id
    LEFT JOIN q ON q.sample_id = m.sample_id AND q.teacher = m.teacher AND q.nth = 1
    LEFT JOIN a ON a.sample_id = m.sample_id AND a.teacher = m.teacher AND a.nth = 1
    LEFT JOIN qa ON qa.parent_id = q.variant_id AND qa.nth = 1
    WHERE o.kind = 'origin'
),
decided AS (
    SELECT
        sample_id, teacher, kind,
        CASE kind
            WHEN 'reflect_both' THEN qa_id WHEN 'reflect_instruction' THEN q_id WHEN 'reflect_response' THEN a_id ELSE o_id
        END AS variant_id,
        CASE kind
            WHEN 'reflect_both' THEN qa_ifd WHEN 'reflect_instruction' THEN q_ifd WHEN 'reflect_response' THEN a_ifd ELSE o_ifd
        END AS ifd,
        CASE kind
            WHEN 'reflect_both' THEN qa_rifd WHEN 'reflect_instruction' THEN q_rifd WHEN 'reflect_response' THEN a_rifd ELSE o_rifd
        END AS rifd,
        CASE kind
            WHEN 'reflect_both' THEN 'ifd(Q) > ifd(ori), rifd(QA) < rifd(Q)'
            WHEN 'reflect_instruction' THEN 'ifd(Q) > ifd(ori)'
            WHEN 'reflect_response' THEN 'rifd(A) < rifd(ori)'
            ELSE 'no reflection is better'
        END AS reason
    FROM branch
),
candidate AS (
    SELECT
        d.*, s.place,
        CASE
            WHEN d.ifd < 1 AND d.rifd < 1 THEN 'kept'
            WHEN d.ifd < 1 THEN 'rifd not below 1'
            ELSE 'ifd not below 1'
        END AS verdict
    FROM decided d
    JOIN sight s ON s.sample_id = d.sample_id
),
-- One candidate a sample: there are several only with the best of several teachers.
choice AS (
    SELECT
        *,
        row_number() OVER (
            PARTITION BY sample_id ORDER BY ifd DESC NULLS LAST, rifd NULLS LAST, teacher NULLS LAST
        ) AS nth
    FROM candidate
    WHERE (verdict = 'kept' OR :keep = 'candidates')
    AND (kind IN ('reflect_both', 'reflect_response') OR :keep <> 'reflected')
),
ranked AS (
    SELECT *, row_number() OVER (ORDER BY ifd DESC NULLS LAST, place) AS by_ifd FROM choice WHERE nth = 1
)
SELECT
    variant_id,
    CASE WHEN CAST(:top_count AS BIGINT) > 0 OR CAST(:top_percent AS DOUBLE PRECISION) > 0 THEN by_ifd END AS rank,
    reason, verdict, sample_id, kind, ifd, rifd
FROM ranked
WHERE (CAST(:top_count AS BIGINT) IS NULL AND CAST(:top_percent AS DOUBLE PRECISION) IS NULL)
OR by_ifd <= CAST(:top_count AS BIGINT)
OR by_ifd * 100 <= CAST(:top_percent AS DOUBLE PRECISION) * (SELECT count(*) FROM sight)
