"""Shared fixtures: small real parts, made once. Which tests are slow, and which may be skipped in CI."""

from __future__ import annotations

import gc
import os
import re
import sys
import tarfile
from pathlib import Path

import hypothesis
import pytest

from r2v.domains.household.scenes import SceneSettings, make_tasks

# How long an example takes is a matter of what else the machine does: no test is about seconds.
hypothesis.settings.register_profile("r2v", deadline=None)
hypothesis.settings.load_profile("r2v")

SMALL = SceneSettings(house="small", receptacles=(5, 8), objects=(6, 11))

SLOW = {
    # whole runs of the pipeline, and training (its libraries alone are seconds of imports)
    "test_pipeline.py",
    "test_improve.py",
    "test_humaneval_run.py",
    "test_terminal_run.py",
    "test_household_real.py",
    "test_slm.py",
    "test_local_models.py",
    "test_conversation_training.py",
    "test_ray.py",
    "test_gateway_household.py",
    "test_plugins.py::test_own_domain_verifier_and_router_go_through_the_pipeline_to_the_report",
    "test_fit_logs.py::test_a_run_on_own_logs_inspects_and_fits",
    "test_recorded_router.py::test_the_script_makes_the_same_folder_twice_and_finds_what_is_there",
    "test_log_formats.py::test_fitting_and_inspecting_need_no_torch_and_no_web_server",
    "test_log_formats.py::test_real_cells_of_agentdojo_are_those_of_every_agent",
    "test_log_formats.py::test_real_data_bases_of_intercode_are_those_of_spider",
    "test_log_formats.py::test_real_episodes_of_workbench_are_ten_queries_a_template",
    "test_hostile_files.py",
    "test_explored.py",
    "test_advise.py::test_a_model_left_out_is_measured_beside_the_others",
    # several fits, or one fit several times; every schema against the library
    "test_advise.py::test_what_routing_saves_is_in_money_where_prices_are_known",
    "test_advise.py::test_fit_writes_the_router_that_was_measured",
    "test_advise.py::test_fit_writes_nothing_that_may_lose",
    "test_advise.py::test_the_models_can_be_named",
    "test_traces.py::test_views_without_log_probabilities_lose_nothing_that_a_black_box_has",
    "test_traces.py::test_a_risk_does_not_know_the_future",
    "test_localiser.py::test_inspect_of_labelled_failures_alone_names_their_steps",
    "test_fit_logs.py::test_outcomes_of_one_model_show_a_risk_but_no_route",
    "test_json_schema.py::test_ordinary_checks_are_those_of_the_library",
    "test_gateway_totals.py::test_the_page_reads_as_much_of_a_large_ledger_as_of_a_small_one",
    "test_plugins.py::test_a_run_without_torch_stops_before_it_plays",
    # other engines, recorded games and answers
    "test_recorded_help.py",
    "test_bench_suites.py::test_real_games_are_rebuilt_and_can_be_won",
    "test_bench_suites.py::test_what_is_hidden_is_not_where_the_goal_wants_it",
    "test_bench_suites.py::test_real_questions",
    "test_household_textworld.py",
    "test_traces.py::test_our_engine_answers_a_real_model_as_alfworld_did",
    "test_traces.py::test_where_the_game_is_at_hand_every_step_is_compared",
    "test_traces.py::test_real_traces_are_inspected",
    "test_localiser.py::test_inspect_names_steps_and_measures_itself_on_the_logs_own_labels",
    "test_traces.py::test_the_expert_rescues_a_real_model_and_gaps_are_counted",
    "test_traces.py::test_alfworld_example_finds_real_games_and_collects",
    "test_humaneval.py::test_real_files_are_read_whole_and_canonical_solutions_pass",
    # other people's programs: browsers, Redis, Postgres and nginx, agent frameworks
    "test_budgets.py",
    "test_gateway_replicas.py",
    "test_gateway_postgres.py",
    "test_launch.py",
    "test_gateway.py::test_the_frameworks_people_use",
    "test_gateway.py::test_the_page_shows_sessions_in_a_browser_and_no_markup_of_models",
    "test_gateway.py::test_the_page_is_used_on_a_phone_with_the_keyboard",
    "test_gateway.py::test_a_killed_server_has_every_answered_step_in_its_ledger",
    "test_gateway.py::test_fuzzed_requests_never_break_it",
    "test_report.py::test_a_browser_shows_the_episodes",
    # several processes of a gateway; attacks on one; keys that are known after a second
    "test_gateway_workers.py",
    "test_gateway_attacks.py",
    "test_tenancy.py::test_keys_are_made_listed_rotated_and_revoked_while_the_gateway_runs",
    # programs that only end when their limit does; tasks in sandboxes: solved, cheated, under every perturbation
    "test_domains.py::test_the_domains_that_run_code_keep_all_promises",
    "test_humaneval.py::test_cheats_fail",
    "test_sandbox.py::test_what_takes_too_much_is_stopped",
    "test_sandbox.py::test_it_is_stopped_without_namespaces_too",
    "test_terminal.py::test_the_reference_passes_and_an_empty_attempt_fails",
    "test_terminal.py::test_a_task_starts_from_the_same_bytes_and_times",
    "test_terminal.py::test_cheats_fail",
    "test_terminal.py::test_the_environment_conforms_with_and_without_perturbations",
    "test_terminal.py::test_half_right_attempts_fail",
}
"""Files, or `file::test`, that are not quick; every other test is. `make quick` stays under two minutes on two cores."""

MAY_BE_SKIPPED = (
    r"no real data at .*",  # the recorded data do not come with the repository
    r".*/data/.* is not here",
    r"this host allows no namespaces, only .*",
    r"not root: without namespaces .*",
    r"no /dev/full on this system",
    r"no /proc on this system",
)
"""Why a test may be skipped where CI is set: what the machine or the clone cannot have, never a package or a program."""


@pytest.fixture(scope="session")
def small_scenes() -> SceneSettings:
    return SMALL


@pytest.fixture(scope="session")
def small_tasks():
    return make_tasks(3, 60, SMALL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded real data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("R2V_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set R2V_SHARED)")
    return folder


@pytest.fixture(scope="session")
def games(shared_data, tmp_path_factory) -> Path:
    """The 340 recorded ALFWorld games."""
    folder = tmp_path_factory.mktemp("alfworld")
    with tarfile.open(shared_data / "alfworld" / "games_train_seen.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs the command line in this process, which must fail in one line: returns that line."""
    from r2v.cli import app

    def run(*arguments: object, status: int = 1) -> str:
        monkeypatch.setattr(sys, "argv", ["r2v", *map(str, arguments)])
        with pytest.raises(SystemExit, match=f"^{status}$"):
            app()
        told = capsys.readouterr()
        assert (told.out, told.err.count("\n")) == ("", 1), told
        return told.err

    return run


@pytest.fixture(scope="module")
def host():
    """Serves made-up models: `host(model)` is its URL."""
    from servers import model_host

    with model_host() as add:
        yield add


def pytest_configure(config):
    config.addinivalue_line("markers", "quick: the inner loop, `make quick`; set here for all tests that are not in SLOW")
    config.addinivalue_line("markers", "slow: the rest")
    if os.environ.get("CI") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(NoSilentSkips(), "no-silent-skips")


def pytest_unconfigure(config):
    if (module := sys.modules.get("postgres_server")) is not None:
        module.remove_cluster()


def pytest_ignore_collect(collection_path, config):
    """A file without a quick test is not imported where only those run: torch alone takes seconds in each process."""
    return True if config.option.markexpr == "quick" and collection_path.name in SLOW else None


def pytest_collection_modifyitems(items):
    """Marks; and the longest file first, then the slow ones: of two processes, none waits long for the other at the end."""
    for item in items:
        name = f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
        item.add_marker("slow" if item.path.name in SLOW or name in SLOW else "quick")
    items.sort(key=lambda item: (item.path.name != "test_pipeline.py", item.path.name not in SLOW))


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item):
    """With R2V_COLLECT set, what a test leaves open (a socket, say) is found at once: the warning names that test."""
    result = yield
    if os.environ.get("R2V_COLLECT"):
        gc.collect()
    return result


class NoSilentSkips:
    """Fails the run if a test was skipped for a reason that is not in MAY_BE_SKIPPED."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def pytest_runtest_logreport(self, report):
        self._look(report)

    def pytest_collectreport(self, report):
        self._look(report)

    def _look(self, report) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(re.fullmatch(allowed, reason, re.DOTALL) for allowed in MAY_BE_SKIPPED):
            self.wrong.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        if self.wrong:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for line in self.wrong:
            terminalreporter.write_line(f"SKIPPED, and not on the list in tests/conftest.py: {line}", red=True)
