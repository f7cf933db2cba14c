-- Adds the shipped steps that are new, and counts these alone.
WITH new AS (
  INSERT INTO steps SELECT * FROM shipped_steps ON CONFLICT DO NOTHING
  RETURNING session, t, time, key, source, score, slm_usd, teacher_usd, saved_usd, tokens, teacher_calls, route, goal, alike, mode
), of_sessions AS (
  INSERT INTO session_totals AS old (session, key, steps, begun, time, teacher_steps, teacher_calls, tokens, slm_usd,
    teacher_usd, saved_usd, labelled, alike, escalated, goal, mode, only_mode)
  SELECT session, (array_agg(key ORDER BY time, t))[1], COUNT(*), MIN(time), MAX(time),
    COUNT(*) FILTER (WHERE source = 'teacher'), SUM(teacher_calls), SUM(tokens), SUM(slm_usd), SUM(teacher_usd),
    SUM(saved_usd), COUNT(alike), COALESCE(SUM(alike), 0),
    COUNT(*) FILTER (WHERE route NOT IN ('continue', 'retry') AND score IS NOT NULL),
    (array_agg(goal ORDER BY time DESC, t DESC))[1], (array_agg(mode ORDER BY time DESC, t DESC))[1],
    CASE WHEN COUNT(mode) = COUNT(*) AND MIN(mode) = MAX(mode) THEN MIN(mode) END
  FROM new GROUP BY session
  ON CONFLICT (session) DO UPDATE SET steps = old.steps + excluded.steps, begun = LEAST(old.begun, excluded.begun),
    time = GREATEST(old.time, excluded.time), teacher_steps = old.teacher_steps + excluded.teacher_steps,
    teacher_calls = old.teacher_calls + excluded.teacher_calls, tokens = old.tokens + excluded.tokens,
    slm_usd = old.slm_usd + excluded.slm_usd, teacher_usd = old.teacher_usd + excluded.teacher_usd,
    saved_usd = old.saved_usd + excluded.saved_usd, labelled = old.labelled + excluded.labelled,
    alike = old.alike + excluded.alike, escalated = old.escalated + excluded.escalated,
    goal = CASE WHEN excluded.time >= old.time THEN excluded.goal ELSE old.goal END,
    mode = CASE WHEN excluded.time >= old.time THEN excluded.mode ELSE old.mode END,
    only_mode = CASE WHEN old.only_mode = excluded.only_mode THEN old.only_mode END
)
INSERT INTO day_totals AS old (day, key, steps, teacher_steps, calls, tokens, usd, saved_usd, labelled, alike)
SELECT floor(time / 86400), key, COUNT(*), COUNT(*) FILTER (WHERE source = 'teacher'), SUM(teacher_calls), SUM(tokens),
  SUM(slm_usd + teacher_usd), SUM(saved_usd), COUNT(alike), COALESCE(SUM(alike), 0)
FROM new GROUP BY 1, 2
ON CONFLICT (day, key) DO UPDATE SET steps = old.steps + excluded.steps,
  teacher_steps = old.teacher_steps + excluded.teacher_steps, calls = old.calls + excluded.calls,
  tokens = old.tokens + excluded.tokens, usd = old.usd + excluded.usd, saved_usd = old.saved_usd + excluded.saved_usd,
  labelled = old.labelled + excluded.labelled, alike = old.alike + excluded.alike
