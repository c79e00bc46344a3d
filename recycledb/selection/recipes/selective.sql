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

WITH sight AS (
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
),
score AS MATERIALIZED (
    SELECT sample_id, teacher, ori_id, q_id, a_id, qa_id,
        CASE :metric WHEN 'loss' THEN ori_ifd_loss ELSE ori_ifd_ppl END AS ori_ifd,
        CASE :metric WHEN 'loss' THEN ori_rifd_loss ELSE ori_rifd_ppl END AS ori_rifd,
        CASE :metric WHEN 'loss' THEN q_ifd_loss ELSE q_ifd_ppl END AS q_ifd,
        CASE :metric WHEN 'loss' THEN q_rifd_loss ELSE q_rifd_ppl END AS q_rifd,
        CASE :metric WHEN 'loss' THEN a_ifd_loss ELSE a_ifd_ppl END AS a_ifd,
        CASE :metric WHEN 'loss' THEN a_rifd_loss ELSE a_rifd_ppl END AS a_rifd,
        CASE :metric WHEN 'loss' THEN qa_ifd_loss ELSE qa_ifd_ppl END AS qa_ifd,
        CASE :metric WHEN 'loss' THEN qa_rifd_loss ELSE qa_rifd_ppl END AS qa_rifd
    FROM sample_scores WHERE student = :student AND (teacher = :teacher OR coalesce(:teacher, 'best') = 'best')
),
-- One for each teacher who has made something of the sample; where nobody has, the origin.
candidate(sample_id, teacher, kind, variant_id, ifd, rifd, reason) AS (
    SELECT sample_id, teacher, 'reflect_both', qa_id, qa_ifd, qa_rifd, 'ifd(Q) > ifd(ori), rifd(QA) < rifd(Q)'
    FROM score WHERE q_ifd > ori_ifd AND qa_rifd < q_rifd
    UNION ALL SELECT sample_id, teacher, 'reflect_instruction', q_id, q_ifd, q_rifd, 'ifd(Q) > ifd(ori)'
    FROM score WHERE q_ifd > ori_ifd AND (qa_rifd < q_rifd) IS NOT TRUE
    UNION ALL SELECT sample_id, teacher, 'reflect_response', a_id, a_ifd, a_rifd, 'rifd(A) < rifd(ori)'
    FROM score WHERE (q_ifd > ori_ifd) IS NOT TRUE AND a_rifd < ori_rifd
    UNION ALL SELECT sample_id, teacher, 'origin', ori_id, ori_ifd, ori_rifd, 'no reflection is better'
    FROM score WHERE (q_ifd > ori_ifd OR a_rifd < ori_rifd) IS NOT TRUE AND ori_id IS NOT NULL
    AND (coalesce(q_id, a_id) IS NOT NULL OR sample_id NOT IN (SELECT sample_id FROM score WHERE coalesce(q_id, a_id) IS NOT NULL))
),
-- One candidate a sample: there are several only with the best of several teachers.
choice AS (
    SELECT c.*, s.place, row_number() OVER (
        PARTITION BY c.sample_id ORDER BY ifd DESC NULLS LAST, rifd NULLS LAST, teacher NULLS LAST
    ) AS nth FROM candidate c JOIN sight s ON s.sample_id = c.sample_id
    WHERE (:keep = 'candidates' OR (ifd < 1 AND rifd < 1)) AND (:keep <> 'reflected' OR kind IN ('reflect_both', 'reflect_response'))
),
ranked AS (SELECT *, row_number() OVER (ORDER BY ifd DESC NULLS LAST, place) AS by_ifd FROM choice WHERE nth = 1)
SELECT variant_id,
    CASE WHEN CAST(:top_count AS BIGINT) > 0 OR CAST(:top_percent AS DOUBLE PRECISION) > 0 THEN by_ifd END AS rank, reason,
    CASE WHEN ifd < 1 AND rifd < 1 THEN 'kept' WHEN ifd < 1 THEN 'rifd not below 1' ELSE 'ifd not below 1' END AS verdict,
    sample_id, kind, ifd, rifd
FROM ranked WHERE coalesce(CAST(:top_count AS BIGINT), by_ifd) >= by_ifd
AND coalesce(CAST(:top_percent AS DOUBLE PRECISION) * (SELECT count(*) FROM sight), by_ifd * 100) >= by_ifd * 100
