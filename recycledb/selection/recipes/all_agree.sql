-- @description The variants in the upper half of every measure named, those with the best worst place first.
--
-- Any number of measures, each as NAME/MODEL: wanted=ifd/7b,selectit/7b,quality/gpt. An IFD of 1 or more counts as none.
--
-- @param wanted text: the measures, as NAME/MODEL, separated by commas
-- @param kind text = origin: which kind of variant
-- @param dataset dataset = none: only samples of this dataset

WITH sight AS (
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
),
placed AS (
    SELECT m.variant_id, s.place, percent_rank() OVER (PARTITION BY m.measure, m.model ORDER BY m.value) AS height
    FROM measures m
    JOIN sight s ON s.sample_id = m.sample_id
    WHERE m.is_current = 1 AND m.kind = :kind AND m.value IS NOT NULL AND (m.measure <> 'ifd' OR m.value < 1)
    AND instr(',' || replace(:wanted, ' ', '') || ',', ',' || m.measure || '/' || m.model || ',') > 0
)
SELECT variant_id, row_number() OVER (ORDER BY min(height) DESC, min(place), variant_id) AS rank, 'in the upper half of all' AS reason,
    min(height) AS worst, avg(height) AS mean
FROM placed
GROUP BY variant_id
HAVING count(*) = length(:wanted) - length(replace(:wanted, ',', '')) + 1 AND min(height) >= 0.5
