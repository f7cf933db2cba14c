"""A domain is one object, your own as good as ours; nothing of one domain reaches another; settings ask it what it has."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest
from examples.own_domain import DOMAIN as GUESS
from examples.own_domain import Guess, static
from examples.own_verifier import GuessVerifier

import r2v.domains
from r2v.clients.scripted import ScriptedPolicy
from r2v.core.agent import Noisy, Solo
from r2v.core.checks import CheckFailed, check, check_domain
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.fixed import Never
from r2v.core.types import Action
from r2v.domains import BUILT_IN, load_domain
from r2v.domains.base import Domain, EnvironmentSettings, made_in
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.text_game import TextGame
from r2v.evaluation.closed_loop import cases, play
from r2v.gateway.settings import RouteSettings
from r2v.learning.tokenizer import train_tokenizer
from r2v.messages.chat_format import ChatFormat
from r2v.perturbations.wrap import PerturbedBranching, perturbed
from r2v.pipeline.settings import RunSettings
from r2v.routers.entropy import Entropy
from r2v.routers.r2v import R2V
from r2v.routers.random import Random
from r2v.runtime import sandbox
from r2v.runtime.settings import dump, load
from r2v.verifiers import verifier_named
from r2v.verifiers.tool_calls import ToolCallVerifier
from toy import Toy

ROOT = Path(r2v.domains.__file__).parent
CODE = "environment: {kind: humaneval}"
SHELL = "environment: {kind: terminal}"
CHAT = "{kind: chat, base_url: http://localhost:1/v1, model: m}"
ENV = EnvironmentSettings(kind="examples.own_domain:DOMAIN", horizon=7)


def modules(domain: str) -> list[Path]:
    return [p for p in sorted((ROOT / domain).rglob("*.py")) if "tasks" not in p.relative_to(ROOT).parts]


def imported(path: Path) -> set[str]:
    """Modules of r2v that a file imports, also inside functions; `from package import module` counts as the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("r2v"):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("r2v")}
    return found


def reached(start: str, domain: str) -> set[str]:
    """Names of the domain's own modules that one of them imports, directly or through others."""
    known, new = {p.stem for p in modules(domain)}, {start}
    seen: set[str] = set()
    while new:
        seen |= new
        words = {
            m.rsplit(".", 1)[1] for name in new for m in imported(ROOT / domain / f"{name}.py") if f"domains.{domain}." in m
        }
        new = words & known - seen
    return seen - {start}


@pytest.mark.parametrize("domain", BUILT_IN)
def test_no_module_of_a_domain_imports_another_domain(domain):
    own = ("r2v.domains.base", "r2v.domains.text_game", f"r2v.domains.{domain}")
    for path in modules(domain):
        wrong = {m for m in imported(path) if m.startswith("r2v.domains.") and not m.startswith(own)}
        assert not wrong, path


@pytest.mark.parametrize(
    ("domain", "verifier"), [("household", {"catalogue"}), ("humaneval", {"chat_format"}), ("terminal", {"commands"})]
)
def test_a_verifier_sees_no_environment_and_a_perturbation_no_state(domain, verifier):
    assert reached("verifier", domain) == verifier
    assert reached("perturbations", domain) == set()


def test_the_example_domain_keeps_all_promises():
    asyncio.run(check_domain(GUESS))
    assert check(GUESS) == "domain"


def test_the_household_keeps_all_promises():
    assert check(load_domain("household")) == "domain"


def test_the_domains_that_run_code_keep_all_promises():
    if "namespaces" not in sandbox.layers():
        pytest.skip("these domains need namespaces, which this host does not allow")
    assert check(load_domain("humaneval")) == check(load_domain("terminal")) == "domain"


def rates(agent, zs, strength=1.0):
    def make(task, z):
        environment = GUESS.environment(ENV, task)
        if not z:
            return environment, "none"
        return perturbed(environment, GUESS.perturbation("static", strength, task.goal), seed=z, salt=task.id), "static"

    episodes = asyncio.run(play(agent, cases(GUESS.tasks(ENV, 60, 3), zs), make, horizon=7))
    assert {e.failure for e in episodes} == {None}
    return sum(bool(e.success) for e in episodes) / len(episodes)


def test_the_expert_of_the_example_wins_and_random_guesses_do_not():
    expert = Solo(GUESS.expert(), "teacher")
    assert rates(expert, [0]) == 1.0
    assert rates(expert, [0]) > rates(expert, [1, 2], strength=1.5) > rates(Noisy(expert, 1.0, GUESS.random_action), [0])


def test_a_perturbed_environment_can_be_cloned_if_it_could_before():
    (task,) = GUESS.tasks(ENV, 1, 0)
    static = GUESS.perturbation("static", 1.0, task.goal)
    assert isinstance(perturbed(GUESS.environment(ENV, task), static, seed=1, salt="x"), PerturbedBranching)

    class Plain:
        goal = "g"
        start = step = close = None

    assert not hasattr(perturbed(Plain(), static, seed=1, salt="x"), "clone")


def test_a_tiny_model_could_say_every_action_of_the_domains_it_is_trained_in():

    for domain, actions in (
        (load_domain("household"), ["go to cabinet 12", "put pen 1 in/on drawer 2", "use desklamp 1", "look"]),
        (GUESS, ["guess 7", "guess 32"]),
    ):
        tokenizer = train_tokenizer(actions, pieces=domain.pieces, dropped=domain.dropped)
        assert [tokenizer.decode(tokenizer(text)["input_ids"]) for text in actions] == actions


def settings(tmp_path, text, overrides=()):
    path = tmp_path / "s.yaml"
    path.write_text(f"version: 1\n{text}")
    return load(path, RunSettings, overrides)


def test_settings_take_a_domain_by_its_dotted_path_and_come_back(tmp_path):
    found = settings(tmp_path, "environment: {kind: examples.own_domain:DOMAIN, horizon: 7}")
    assert found.domain is GUESS and found.environment.horizon == 7
    assert found.perturbations.families == ("static",)
    again = settings(tmp_path, dump(found).removeprefix("version: 1\n"))
    assert again == found and type(again.environment) is type(found.environment)


def test_what_is_left_out_is_what_the_domain_has(tmp_path):
    household = settings(tmp_path, "environment: {house: small}")
    assert household.environment.kind == "household" and household.environment.house == "small"
    assert household.perturbations.families == ("flaky", "partial", "inject", "distract")
    assert household.collect.noisy_episodes == 0.7
    terminal = settings(tmp_path, f"{SHELL}\nteacher: {CHAT}\nslm: {{model: {CHAT}}}")
    assert terminal.perturbations.families == ("flaky", "partial")
    assert (terminal.environment.horizon, terminal.collect.noisy_episodes) == (25, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("environment: {kind: chess}", "no domain is called chess"),
        ("environment: {kind: houshold}", "did you mean household?"),
        ("environment: {kind: examples.own_domain:Guess}", "is not a domain"),
        ("environment: {kind: examples.own_domain:NOTHING}", "has no NOTHING"),
        ("environment: {hause: small}", "unknown key `environment.hause`; did you mean `house`?"),
        ("environment: {horizon: 0}", "`environment.horizon` = 0"),
        ("environment: {families: [juggle]}", "`environment.families.0` = ['juggle']: choose from "),
        ("environment: {kind: humaneval, house: small}", "unknown key `environment.house`"),
        ("environment: 7", "environment"),
        ("environment: {kind: terminal}", "no scripted expert"),
        ("tasks: {policy: 0}", "tasks.policy is 0"),
        (f"{CODE}\nteacher: {CHAT}", "from scratch in the humaneval environment; set slm: {model: {path"),
        (
            f"{SHELL}\nteacher: {CHAT}\nslm: {{model: {{path: x}}}}\ncollect: {{noisy_episodes: 0.5}}",
            "the terminal environment has no random actions",
        ),
        (f"{SHELL}\nteacher: {CHAT}\nperturbations: {{families: [inject]}}", "there are flaky, partial"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_in_a_domain_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(SettingsError) as error:
        settings(tmp_path, text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_model_that_was_trained_elsewhere_may_be_trained_on_in_any_domain(tmp_path):
    found = settings(tmp_path, f"{SHELL}\nteacher: {CHAT}\nslm: {{model: {{path: x}}}}")
    assert found.trains and found.collect.noisy_episodes == 0.0 and found.domain.random_action is None


def test_a_perturbation_family_and_a_verifier_may_be_anybodys(tmp_path):
    found = settings(tmp_path, "perturbations: {families: [flaky, 'examples.own_domain:static']}")
    perturbation = found.domain.perturbation("examples.own_domain:static", 5.0, "g")
    text, changes = perturbation.apply("You see a pen 1.", where="observation", previous="x", seed=1, t=1)
    assert text == "crackle" and changes[0].operator == "answer lost"
    assert isinstance(verifier_named("examples.own_verifier:GuessVerifier"), GuessVerifier)
    assert RouteSettings(verifier="examples.own_verifier:GuessVerifier").verifier.startswith("examples.")
    with pytest.raises(SettingsError, match="did you mean tool_calls"):
        RouteSettings(verifier="tool_call")
    with pytest.raises(SettingsError, match="no method `score`"):
        verifier_named("examples.own_domain:Guess")


class Forgetful(TextGame):
    """Not all of its state is its own."""

    shared: list[str] = []  # noqa: RUF012

    def play(self, command):
        self.shared.append(command)
        return f"{len(self.shared)} commands"


class Broken(Domain):
    name = "broken"
    perturbations = made_in("examples.own_domain", "static")
    random_action = staticmethod(lambda context, seed: Action("go"))
    tasks = GUESS.tasks
    environment = staticmethod(lambda env, task: Guess(task))


class ShareState(Broken):
    environment = staticmethod(lambda env, task: Forgetful(task.goal, "start"))


class BadExpert(Broken):
    expert = staticmethod(lambda: ScriptedPolicy(lambda context: "guess 99"))


class Renamed(Broken):
    perturbations = {"fog": "examples.own_domain:static"}  # noqa: RUF012


class SameFresh(Broken):
    fresh_tasks = staticmethod(lambda env, count, seed: GUESS.tasks(env, count, 1))


class NoTasks(Broken):
    tasks = staticmethod(lambda env, count, seed: [])


class MoodyTasks(Broken):
    made: list[int] = []  # noqa: RUF012

    def tasks(self, env, count, seed):
        self.made.append(seed)
        return GUESS.tasks(env, count, len(self.made))


class Twins(Broken):
    tasks = staticmethod(lambda env, count, seed: GUESS.tasks(env, 1, seed) * count)


class Wild(Broken):
    drawn: list[int] = []  # noqa: RUF012

    def random_action(self, context, seed):
        self.drawn.append(seed)
        return Action(f"guess {len(self.drawn)}")


class Deaf(Broken):
    chat_format = ChatFormat("Guess.", lambda text: text.upper())


@pytest.mark.parametrize(
    ("domain", "message"),
    [(NoTasks, "has no tasks"), (MoodyTasks, "other tasks from the same seed"), (Twins, "have the same id"),
     (Wild, "one seed gives two random actions"), (Deaf, "reads the action"),
     (ShareState, "clone|different observations"), (BadExpert, "the expert solves none"), (Renamed, "calls itself static"),
     (SameFresh, "are not new")],
)  # fmt: skip
def test_broken_domains_are_caught(domain, message):
    with pytest.raises(CheckFailed, match=message):
        check(domain())


def test_a_thing_is_checked_as_what_it_is():

    assert [check(thing) for thing in (GuessVerifier, GuessVerifier(), ToolCallVerifier)] == ["verifier"] * 3
    assert [check(thing) for thing in (static, Never, Random, Entropy().at(1.0), HouseholdExpert, Toy, lambda: Toy())] == [
        "perturbation", "router", "router", "router", "policy", "environment", "environment",
    ]  # fmt: skip
    with pytest.raises(CheckFailed, match="is no domain, router"):
        check(7)
    with pytest.raises(CheckFailed, match="R2V cannot be made without risk"):
        check(R2V)


class Format:
    name, description, verifier = "mine", "Logs of my program.", None

    def read(self, path):
        if not path.exists():
            raise ArtifactError(f"{path} does not exist")
        return iter(())


class Careless(Format):
    def read(self, path):
        return iter(())


def test_a_log_format_says_what_it_is_and_misses_no_file_silently():
    assert check(Format) == check(Format()) == "log format"
    with pytest.raises(CheckFailed, match="file that does not exist"):
        check(Careless)


def test_the_examples_stay_short():
    for name in ("own_domain", "own_verifier"):
        assert len((Path(__file__).parents[1] / "examples" / f"{name}.py").read_text().splitlines()) < 50
