-- How sessions ended: as their outcome says, else their verdict; counted on the day that it came. Right in any order of
-- arrival, because it is computed from what is known now and from what was counted before.
WITH known AS (
  SELECT s.session, s.key, s.reward AS old_reward, s.ended AS old_ended, e.reward, e.verdict, e.ended
  FROM session_totals s CROSS JOIN LATERAL (
    SELECT reward, '' AS verdict, time AS ended, 0 AS place FROM outcomes WHERE session = s.session AND t IS NULL
    UNION ALL SELECT value, name, time, 1 FROM verdicts WHERE session = s.session
    ORDER BY place LIMIT 1
  ) e
  WHERE s.session = ANY(%(sessions)s) AND (s.reward, s.verdict, s.ended) IS DISTINCT FROM (e.reward, e.verdict, e.ended)
), changed AS (
  UPDATE session_totals s SET reward = known.reward, verdict = known.verdict, ended = known.ended
  FROM known WHERE s.session = known.session
)
INSERT INTO day_totals AS old (day, key, ended, failed)
SELECT day, key, SUM(ended), SUM(failed) FROM (
  SELECT floor(old_ended / 86400) AS day, key, -1 AS ended, CASE WHEN old_reward < %(bound)s THEN -1 ELSE 0 END AS failed
  FROM known WHERE old_reward IS NOT NULL
  UNION ALL SELECT floor(ended / 86400), key, 1, CASE WHEN reward < %(bound)s THEN 1 ELSE 0 END FROM known
) ends GROUP BY day, key
ON CONFLICT (day, key) DO UPDATE SET ended = old.ended + excluded.ended, failed = old.failed + excluded.failed
