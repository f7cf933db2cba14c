-- Adds what steps that left no row cost, and counts what is new of it. `insert` comes from shared_ledger.py.
WITH new AS (
  {insert}
  ON CONFLICT DO NOTHING RETURNING key, time, calls, tokens, usd
)
INSERT INTO day_totals AS old (day, key, calls, tokens, usd)
SELECT floor(time / 86400), key, SUM(calls), SUM(tokens), SUM(usd) FROM new GROUP BY 1, 2
ON CONFLICT (day, key) DO UPDATE SET calls = old.calls + excluded.calls, tokens = old.tokens + excluded.tokens,
  usd = old.usd + excluded.usd
