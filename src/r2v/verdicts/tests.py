"""`tests`: what the newest test run that the agent has seen said.

A summary with counts speaks for itself, whatever printed it. Words alone (`OK`, `BUILD FAILED`) and an exit status count
only where the action before them ran tests: `ls` that ends with status 0 says nothing of the work.
"""

from __future__ import annotations

import re
from sys import getsizeof

from r2v.core.cache import remembered
from r2v.core.types import Context
from r2v.runtime.settings import Settings
from r2v.verdicts.base import REMEMBERED_BYTES, lines, results

ACTION = 4_000
"""Characters of an action in which a test command is searched."""
EDGE = 5
"""Lines at either end of a result among which an agent program writes the exit status."""
RUNS_TESTS = re.compile(
    r"(?<![\w-])(?:py\.?test|unittest|nose2|tox|nox|manage\.py test"
    r"|jest|vitest|mocha|(?:npm|pnpm|yarn|bun|deno)(?: run)? t(?:est)?|node --test"
    r"|go test|cargo (?:nextest|test)|ctest|make (?:test|check)|dotnet test|swift test|mix test"
    r"|mvnw?\b.{0,80}?\b(?:test|verify|install|package)|gradlew?\b.{0,80}?\b(?:test|check|build)"
    r"|rspec|(?:rake|rails) test|phpunit|prove (?:-|t/|\S+\.t\b)|bats \S|run_?tests?)(?![\w-])"
)
COUNTS = tuple(
    re.compile(pattern)
    for pattern in (
        # unittest (a run that found nothing says so in its count), Django
        r"FAILED \((?P<FAIL>failures|errors|unexpected successes)=",
        # jest, vitest
        r"Test(?:s| Suites| Files):?\s+(?:(?P<f1>\d+) failed(?:, | \| )?)?(?:\d+ (?:skipped|todo|pending)(?:, | \| )?){0,3}"
        r"(?:(?P<p1>\d+) passed)?.{0,60}(?:total|\(\d+\))$",
        # mocha, bun
        r"(?:(?P<p1>\d+) pass(?:ing)?|(?P<f1>\d+) fail(?:ing)?)(?: \(\d+(?:ms|s|m)\))?$",
        # node --test
        r"(?:#|ℹ) (?:pass (?P<p1>\d+)|fail (?P<f1>\d+)|cancelled (?P<f2>\d+))$",
        # deno
        r"(?:ok|FAILED) \| (?P<p1>\d+) passed.{0,40}\| (?P<f1>\d+) failed",
        # go test
        r"--- (?P<FAIL>FAIL): \S+ \(|FAIL\s+\S+\s+(?P<FAIL2>[\d.]+s|\[(?:build|setup) failed\])$",
        r"ok\s+\S+\s+(?P<PASS>[\d.]+s|\(cached\))(?!.*\[no tests to run\])",
        # cargo test, cargo nextest
        r"test result: (?:ok|FAILED)\. (?P<p1>\d+) passed; (?P<f1>\d+) failed",
        r"Summary \[.{1,20}\]\s+\d+(?:/\d+)? tests? run: (?P<p1>\d+) passed.{0,20}?(?:, (?P<f1>\d+) failed)?(?:, |$)",
        # Maven (surefire), JUnit
        r"(?:\[\w+\] )?Tests run: (?P<p1>\d+), Failures: (?P<f1>\d+), Errors: (?P<f2>\d+)",
        # Gradle
        r"\d+ tests? completed, (?P<f1>\d+) failed",
        # ctest
        r"\d+% tests passed, (?P<f1>\d+) tests? failed out of (?P<p1>\d+)",
        # dotnet
        r"(?:Passed|Failed)!\s+- Failed:\s+(?P<f1>\d+), Passed:\s+(?P<p1>\d+)",
        r"Test summary: total: \d+, failed: (?P<f1>\d+), succeeded: (?P<p1>\d+)",
        # RSpec, ExUnit
        r"(?P<p1>\d+) (?:examples?|tests?), (?P<f1>\d+) failures?(?:, \d+ (?:pending|skipped|excluded))?"
        r"(?:, (?P<f2>\d+) errors? occurred outside of examples)?$",
        # minitest
        r"(?P<p1>\d+) (?:runs|tests), \d+ assertions, (?P<f1>\d+) failures, (?P<f2>\d+) errors",
        # PHPUnit and JUnit 4 where all is well, PHPUnit where not
        r"OK \((?P<p1>\d+) tests?(?:, \d+ assertions?)?\)",
        r"Tests: (?P<p1>\d+), Assertions: \d+(?:, Errors: (?P<f1>\d+))?(?:, Failures: (?P<f2>\d+))?",
        # XCTest, GoogleTest
        r"Executed (?P<p1>\d+) tests?, with (?P<f1>\d+) failures?",
        r"\[  (?:PASSED  \] (?P<p1>\d+)|FAILED  \] (?P<f1>\d+)) tests?[.,]",
        # prove
        r"Result: (?:(?P<PASS>PASS)|(?P<FAIL>FAIL))$",
    )
)
"""Groups p...: how many passed; f...: how many failed; PASS..., FAIL...: words that say so."""
PYTEST = re.compile(r"=*\s*((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s(?: \([\d:]+\))?\s*=*$")
PART = re.compile(r"(\d+) ([a-z]+)")
RAN = re.compile(r"Ran (\d+) tests? in ")
UNITTEST_OK = re.compile(r"OK(?: \(.{1,100}\))?$")
WORDS = re.compile(
    r"(?:(?P<PASS>PASS|BUILD SUCCESSFUL in .{1,20}|(?:\[INFO\] )?BUILD SUCCESS|Test Run Successful\.)"
    r"|(?P<FAIL>FAIL|BUILD FAILED in .{1,20}|(?:\[INFO\] )?BUILD FAILURE|Test Run Failed\.))$"
)
TAP_PLAN = re.compile(r"1\.\.(\d+)(?: |$)")
TAP = re.compile(r"(not )?ok \d+\b(?!.*# (?:TODO|SKIP|todo|skip))")
STATUS = (
    # <returncode>1</returncode>, Exit code: 1, exit status 1, exited with code 1
    re.compile(r"(?:[^\w-]|_){0,4}(?:exit(?:ed)?|return)(?: with)?[ _-]?(?:code|status)[^\w-]{0,4}(-?\d{1,5})\b", re.I),
    # Process exited with code 0, [The command completed with exit code 0.]
    re.compile(r"\W{0,3}(?:the )?(?:process|command|program)\b.{0,40}?\b(?:code|status)[^\w-]{0,4}(-?\d{1,5})\b", re.I),
)
NOTHING_RUN = re.compile(
    r"\W*(?:no tests? (?:ran|were found|to run|executed|found)|ran 0 tests)|\?.*\[no test files\]", re.I
)
STATUS_IN_JSON = re.compile(r'"(?:exit_?code|return_?code)"\s{0,3}:\s{0,3}(-?\d{1,5})\b', re.I)


class TestsVerdict(Settings):
    """1.0 where the newest test run passed, 0.0 where a test failed; None where no run has been seen.

    An edit after that run does not make its result unknown: it is still the last thing that is known. `read_with_age` says
    how many steps old it is, for who wants to trust it less.
    """

    __test__ = False  # pytest takes it for a class of tests
    name: str = "tests"
    commands: tuple[str, ...] = ()
    """Further words in an action that mean that it runs tests, e.g. `./check.sh`."""

    def read(self, context: Context) -> float | None:
        known = self.read_with_age(context)
        return None if known is None else known[0]

    def read_with_age(self, context: Context) -> tuple[float, int] | None:
        """(value, steps taken since that result came back); None where no test run has been seen."""
        for age, (action, text) in enumerate(results(context)):
            value = verdict_of(text, tested=self._runs_tests(action))
            if value is not None:
                return value, age
        return None

    def _runs_tests(self, action: str) -> bool:
        action = action[:ACTION]
        return RUNS_TESTS.search(action) is not None or any(words in action for words in self.commands)


@remembered(
    REMEMBERED_BYTES, lambda text, *, tested: getsizeof(text)
)  # an agent sends all earlier results again at every step
def verdict_of(text: str, *, tested: bool) -> float | None:
    """What one result says. A failure counts more than what passed beside it.

    Args:
        text: of the result, as far as it is read.
        tested: whether the action before it ran tests.
    """
    found = lines(text)
    failed, passed = _summaries(found, tested)
    if tested and not any(map(NOTHING_RUN.match, found)):  # then a status says nothing
        edges = found if len(found) <= 2 * EDGE else found[:EDGE] + found[-EDGE:]
        statuses = [int(match[1]) for line in edges for match in _statuses(line)]
        failed, passed = failed or any(statuses), passed or bool(statuses)
    if failed:
        return 0.0
    return 1.0 if passed else None


def _summaries(found: list[str], tested: bool) -> tuple[bool, bool]:
    """(whether something failed, whether something passed)."""
    failed = passed = ran = False
    plan = tap_ok = tap_failed = 0
    for raw in found:
        line = raw.strip()
        if not line:
            continue
        if match := PYTEST.match(line):
            counts = {what.rstrip("s"): int(n) for n, what in PART.findall(match[1])}
            failed |= bool(counts.get("failed") or counts.get("error"))
            passed |= bool(counts.get("passed") or counts.get("xfailed") or counts.get("xpassed"))
        elif match := RAN.match(line):
            ran = match[1] != "0"
        elif ran and UNITTEST_OK.match(line):
            passed, ran = True, False
        elif match := TAP_PLAN.match(raw):
            plan = int(match[1])
        elif match := TAP.match(raw):
            tap_failed, tap_ok = tap_failed + bool(match[1]), tap_ok + (not match[1])
        else:
            for pattern in (*COUNTS, WORDS) if tested else COUNTS:
                if match := pattern.match(line):
                    counted = {name: value for name, value in match.groupdict().items() if value not in (None, "0")}
                    failed |= any(name[0] in "fF" for name in counted)
                    passed |= any(name[0] in "pP" for name in counted)
    if plan:
        failed, passed = failed or tap_failed > 0, passed or tap_ok > 0
    return failed, passed


def _statuses(line: str) -> list[re.Match[str]]:
    whole = [match for pattern in STATUS if (match := pattern.match(line))][:1]
    return whole or list(STATUS_IN_JSON.finditer(line))
