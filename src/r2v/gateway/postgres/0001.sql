-- The shared ledger of several gateways: what their journals ship, and its totals.
-- Names of sessions are compared byte by byte, as SQLite does.

CREATE TABLE identity (id TEXT NOT NULL);
INSERT INTO identity SELECT replace(CAST(gen_random_uuid() AS TEXT), '-', '');

-- Who ships here, whether it keeps budgets by itself (no Redis), and how far it has come: numbers of the rows of its journal.
CREATE TABLE replicas (
  id TEXT PRIMARY KEY, seen TIMESTAMPTZ NOT NULL, alone BOOLEAN NOT NULL,
  steps BIGINT NOT NULL DEFAULT 0, outcomes BIGINT NOT NULL DEFAULT 0, abandoned BIGINT NOT NULL DEFAULT 0
);

-- Append-only. The key begins with the session: it finds a session's steps in order, and rows that come twice.
CREATE TABLE steps (
  id TEXT COLLATE "C" NOT NULL, session TEXT COLLATE "C" NOT NULL, t BIGINT NOT NULL, time DOUBLE PRECISION NOT NULL,
  key TEXT COLLATE "C" NOT NULL, source TEXT NOT NULL, code TEXT NOT NULL, model TEXT NOT NULL,
  score DOUBLE PRECISION, score_kind TEXT, threshold DOUBLE PRECISION, propensity DOUBLE PRECISION NOT NULL,
  slm_usd DOUBLE PRECISION NOT NULL, teacher_usd DOUBLE PRECISION NOT NULL, saved_usd DOUBLE PRECISION NOT NULL,
  tokens BIGINT NOT NULL, teacher_calls BIGINT NOT NULL, candidates BIGINT NOT NULL, overhead_ms DOUBLE PRECISION NOT NULL,
  route TEXT NOT NULL, goal TEXT COLLATE "C" NOT NULL, alike BIGINT, mode TEXT, record BYTEA NOT NULL,
  PRIMARY KEY (session, t, id)
);
CREATE INDEX steps_by_time ON steps USING brin (time);
CREATE INDEX steps_compared ON steps (time) INCLUDE (alike) WHERE alike IS NOT NULL;
CREATE VIEW comparisons AS SELECT time, id, alike FROM steps WHERE alike IS NOT NULL;

-- One row for each step of a session, and one for the whole of it (t is null): the latest.
CREATE TABLE outcomes (
  session TEXT COLLATE "C" NOT NULL, t BIGINT, reward DOUBLE PRECISION NOT NULL, time DOUBLE PRECISION NOT NULL
);
CREATE UNIQUE INDEX outcomes_of_session ON outcomes (session, COALESCE(t, -1));

CREATE TABLE verdicts (
  session TEXT COLLATE "C" PRIMARY KEY, name TEXT NOT NULL, rank BIGINT NOT NULL, value DOUBLE PRECISION NOT NULL,
  time DOUBLE PRECISION NOT NULL
);

CREATE TABLE abandoned (
  id TEXT COLLATE "C" NOT NULL, session TEXT COLLATE "C" NOT NULL, key TEXT COLLATE "C" NOT NULL,
  time DOUBLE PRECISION NOT NULL, calls BIGINT NOT NULL, tokens BIGINT NOT NULL, usd DOUBLE PRECISION NOT NULL, why TEXT,
  PRIMARY KEY (session, id)
);

CREATE TABLE tools (session TEXT COLLATE "C" PRIMARY KEY, text TEXT NOT NULL);

CREATE TABLE session_totals (
  session TEXT COLLATE "C" PRIMARY KEY, key TEXT COLLATE "C" NOT NULL, steps BIGINT NOT NULL, begun DOUBLE PRECISION NOT NULL,
  time DOUBLE PRECISION NOT NULL, teacher_steps BIGINT NOT NULL, teacher_calls BIGINT NOT NULL, tokens BIGINT NOT NULL,
  slm_usd DOUBLE PRECISION NOT NULL, teacher_usd DOUBLE PRECISION NOT NULL, saved_usd DOUBLE PRECISION NOT NULL,
  labelled BIGINT NOT NULL, alike BIGINT NOT NULL, escalated BIGINT NOT NULL, goal TEXT COLLATE "C" NOT NULL, mode TEXT,
  only_mode TEXT, reward DOUBLE PRECISION, verdict TEXT, ended DOUBLE PRECISION
);
CREATE INDEX session_totals_by_time ON session_totals (time);
CREATE INDEX session_totals_by_begin ON session_totals (begun);
CREATE INDEX session_totals_ended ON session_totals (ended) WHERE ended IS NOT NULL;
CREATE INDEX session_totals_of_mode ON session_totals (only_mode, begun) WHERE ended IS NOT NULL;

CREATE TABLE day_totals (
  day BIGINT NOT NULL, key TEXT COLLATE "C" NOT NULL, steps BIGINT NOT NULL DEFAULT 0,
  teacher_steps BIGINT NOT NULL DEFAULT 0, calls BIGINT NOT NULL DEFAULT 0, tokens BIGINT NOT NULL DEFAULT 0,
  usd DOUBLE PRECISION NOT NULL DEFAULT 0, saved_usd DOUBLE PRECISION NOT NULL DEFAULT 0,
  labelled BIGINT NOT NULL DEFAULT 0, alike BIGINT NOT NULL DEFAULT 0, ended BIGINT NOT NULL DEFAULT 0,
  failed BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (day, key)
);
