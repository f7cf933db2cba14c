-- The archive of ledgers (`r2v archive`) in ClickHouse, a day at a time; a day that is read again changes nothing.
--
--   clickhouse-client --multiquery --param_day=2026-11-29 < deploy/clickhouse.sql
--
-- The archive lies in `archive` below the server's user_files_path; of one in a bucket write s3('https://...', Parquet) for file(...).
-- A step that two replicas have is one after a merge: ask with FINAL. `docs/operations.md` says more.
CREATE DATABASE IF NOT EXISTS r2v;

CREATE TABLE IF NOT EXISTS r2v.steps (
    id String, session String, t Int64, time Float64, key LowCardinality(String), source LowCardinality(String),
    code LowCardinality(String), model LowCardinality(String), score Nullable(Float64), score_kind Nullable(String),
    threshold Nullable(Float64), propensity Float64, slm_usd Float64, teacher_usd Float64, saved_usd Float64, tokens Int64,
    teacher_calls Int64, candidates Int64, overhead_ms Float64, route LowCardinality(String), goal String,
    alike Nullable(Bool), mode Nullable(String), record String CODEC(ZSTD(3))
) ENGINE = ReplacingMergeTree ORDER BY id;

CREATE TABLE IF NOT EXISTS r2v.outcomes (session String, t Nullable(Int64), reward Float64, time Float64)
ENGINE = ReplacingMergeTree ORDER BY (session, coalesce(t, -1), time, reward);

CREATE TABLE IF NOT EXISTS r2v.verdicts (session String, name String, rank Int64, value Float64, time Float64)
ENGINE = ReplacingMergeTree ORDER BY (session, name, rank, time, value);

CREATE TABLE IF NOT EXISTS r2v.abandoned (
    session String, key String, time Float64, calls Int64, tokens Int64, usd Float64, why Nullable(String)
) ENGINE = ReplacingMergeTree ORDER BY (session, key, time, calls, tokens, usd);

INSERT INTO r2v.steps SELECT * FROM file(concat('archive/day=', {day:String}, '/steps.*.parquet'), Parquet);
INSERT INTO r2v.outcomes SELECT * FROM file(concat('archive/day=', {day:String}, '/outcomes.*.parquet'), Parquet);
INSERT INTO r2v.verdicts SELECT * FROM file(concat('archive/day=', {day:String}, '/verdicts.*.parquet'), Parquet);
INSERT INTO r2v.abandoned SELECT * FROM file(concat('archive/day=', {day:String}, '/abandoned.*.parquet'), Parquet);
