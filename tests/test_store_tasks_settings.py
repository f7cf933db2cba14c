"""Files are whole or absent and read back with their types; splits are disjoint; settings errors name the key."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2v.clients import make_client
from r2v.clients.settings import ClientSettings
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.seeds import derive_seed, derive_uniform
from r2v.core.splits import split
from r2v.core.types import Task
from r2v.gateway.keys import KeyRing
from r2v.gateway.ledger import Ledger
from r2v.gateway.settings import ServerSettings, StoreSettings
from r2v.pipeline.settings import LogsSettings, RunSettings
from r2v.runtime.settings import dump, from_environment, keys, load, validated
from r2v.runtime.store import decode, encode, read_episodes, sha256, whole_file, write_episodes
from toy import played_episode


def test_episodes_come_back_equal(tmp_path):
    episode = played_episode()
    broken = replace(episode, success=None, final=None, stop="error")
    write_episodes(tmp_path / "e.parquet", [episode, broken])
    assert read_episodes(tmp_path / "e.parquet") == [episode, broken]
    assert decode(encode(episode)) == episode


def test_damaged_files_are_one_line_errors(tmp_path):
    path = tmp_path / "e.parquet"
    with pytest.raises(ArtifactError, match="does not exist"):
        read_episodes(path)
    write_episodes(path, [played_episode()])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match="corrupt") as error:
        read_episodes(path)
    assert "\n" not in str(error.value)


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_may_write_one_file_at_once(tmp_path):
    path = tmp_path / "f"
    with whole_file(path) as first, whole_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_the_hash_of_a_folder_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert sha256(tmp_path) != first


@given(st.integers(0, 99), st.permutations(range(60)))
def test_splits_are_disjoint_stratified_and_independent_of_order(seed, order):
    tasks = [Task(f"t{i}", f"f{i % 6}", "toy", "g") for i in range(60)]
    sizes = {"policy": 30, "test": 12, "validation": 12}
    result = split([tasks[i] for i in order], sizes, seed=seed)
    assert result == split(tasks, sizes, seed=seed)
    assert {name: len(members) for name, members in result.items()} == sizes
    assert len({task.id for members in result.values() for task in members}) == sum(sizes.values())
    for members in result.values():
        counts = Counter(task.family for task in members)
        assert max(counts.values()) - min(counts[f"f{i}"] for i in range(6)) <= 2


def test_a_split_is_drawn_at_random_and_every_run_of_it_has_each_family_in_proportion():
    tasks = [Task(f"t{i:02}", "f", "toy", "g") for i in range(60)]
    drawn = Counter(task.id for seed in range(200) for task in split(tasks, {"test": 12}, seed=seed)["test"])
    assert len(drawn) == 60 and min(drawn.values()) >= 18 and max(drawn.values()) <= 64  # 40 each but for chance
    uneven = [Task(f"t{i}", "ab"[i >= 2], "toy", "g") for i in range(8)]
    order = split(uneven, {str(i): 1 for i in range(8)}, seed=0)
    assert "".join(task.family for (task,) in order.values()) == "babbbabb"


def test_too_few_tasks_is_a_clear_error():
    with pytest.raises(SettingsError, match="need 3 tasks but there are 1"):
        split([Task("a", "f", "toy", "g")], {"policy": 3}, seed=0)


def test_seeds_differ_by_every_part():
    assert len({derive_seed(*parts) for parts in [("a", 1), ("a", 2), ("b", 1), ("a1",), (1, "a")]}) == 5
    assert 0 <= derive_seed("x") < 2**63
    assert derive_seed("a", 1) == 4_665_976_284_724_862_560  # on every machine: recorded runs can be played again
    assert derive_uniform("a", 1) == derive_seed("a", 1) / 2**63


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nclone: {stepz: 3}", "unknown key `clone.stepz`; did you mean `steps`?"),
        ("version: 1\nclone: {steps: many}", "`clone.steps` = 'many'"),
        ("seed: 1", "key `version` is missing"),
        ("version: 1\nperturbations: {collect: [1], test: [1, 2]}", "each use needs seeds of its own"),
        ("version: 1\nperturbations: {families: [flaky, rain]}", "rain"),
        ("version: 1\nteacher: {kind: chat, model: m}", "base_url` is missing"),
        ("version: 1\nteacher: {kind: chatt}", "`teacher.kind` = 'chatt': choose from expert, chat"),
        ("version: 1\nrouter: {weighting: steps}", "`router.weighting` = 'steps': choose from step, episode"),
        ("version: 1\nrouter: {hidden: [8, 0]}", "`router.hidden.1` = [8, 0]: Expected `int` >= 1"),
        ("[1, 2]", "must hold keys and values"),
        ("a: [", "not valid YAML"),
        ("tasks: {policy: 1}\ntasks: {policy: 2}", "`tasks` stands twice in the same part (line 2); leave one"),
    ],
)
def test_settings_errors_name_the_key(tmp_path, text, message):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        load(path, RunSettings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_router_whose_name_is_no_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("r2v.routers.entropy.Entropy.name", "../x")
    (tmp_path / "s.yaml").write_text("version: 1\nrouters: [r2v, entropy]")
    with pytest.raises(SettingsError, match=r"router '\.\./x' names a folder, too"):
        load(tmp_path / "s.yaml", RunSettings)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "examples").rglob("*.yaml")), ids=lambda path: path.stem
)
def test_every_example_can_be_read(path):
    assert load(path, LogsSettings if "logs" in keys(path) else RunSettings).version == 1


def test_overrides_and_the_dump_of_effective_settings(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("version: 1")
    settings = load(path, RunSettings, ["clone.steps=7", "slm.k=3"])
    assert (settings.clone.steps, settings.slm.k) == (7, 3)
    path.write_text(dump(settings))
    assert load(path, RunSettings) == settings
    with pytest.raises(SettingsError, match=r"dotted\.key=value"):
        load(path, RunSettings, ["clone.steps"])
    for override in ("clone.nosuch=1", "clone.steps=x", "clone={nosuch: 1}"):
        with pytest.raises(SettingsError, match=r"^--set clone.*: .*`clone\."):
            load(path, RunSettings, ["slm.k=3", override])
    path.write_text("version: 1\nclone: {nosuch: 1}")
    with pytest.raises(SettingsError, match=f"^{path}: unknown key `clone.nosuch`"):
        load(path, RunSettings, ["clone.steps=7"])


def test_what_is_wrong_with_a_group_does_not_print_the_group(tmp_path):

    path = tmp_path / "settings.yaml"
    path.write_text("version: 1\nrouters: [r2v, hepler]\ntasks: {router: 17}\n")
    with pytest.raises(SettingsError) as error:
        load(path, RunSettings)
    assert str(error.value) == f"{path}: no router is called hepler; did you mean helper?"
    for empty in ("help: {rates: []}", "help: {budgets: []}", "evaluate: {asked_shares: []}"):
        path.write_text(f"version: 1\n{empty}\n")
        with pytest.raises(SettingsError, match="length >= 1"):
            load(path, RunSettings)
    path.write_text("version: 1\nrouter: {batch_size: 1}\n")
    with pytest.raises(SettingsError, match=">= 2"):
        load(path, RunSettings)
    path.write_text("version: 1\nprefer: {enabled: true}\nperturbations: {propose: []}\n")
    with pytest.raises(SettingsError, match="propose names no seed"):
        load(path, RunSettings)
    path.write_text("version: 1\nperturbations: {rollout: [1, 2]}\n")
    with pytest.raises(SettingsError, match="`perturbations`: seed 1 is in `collect` and in `rollout`"):
        load(path, RunSettings)


# -- a key where the name of its variable belongs -------------------------------------------------------------------------

HERE = {"base_url": "http://x/v1", "model": "m"}
PASTED = [
    "sk-ant-api03-abcdefghijklmnop",
    "redis://:a-password@host:6379",
    "$OPENAI_API_KEY",
    "r2v-abc_def",
    "",
    ["sk-proj-12345678"],
]


@pytest.mark.parametrize("pasted", PASTED)
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (ClientSettings, "api_key_env"), (ServerSettings, "key_env"), (ServerSettings, "admin_key_env"),
        (StoreSettings, "hash_key_env"), (StoreSettings, "redis_env"), (StoreSettings, "url_env"),
    ],
)  # fmt: skip
def test_what_cannot_name_a_variable_is_refused_and_not_repeated(kind, key, pasted):
    with pytest.raises(SettingsError, match=key) as caught:
        validated(kind, (HERE if kind is ClientSettings else {}) | {key: pasted}, "models.slm")
    said = str(caught.value)
    assert not any(secret in said for secret in ("sk-", "a-password", "$OPENAI", "abc_def"))
    assert "must be the name of an environment variable" in said or isinstance(pasted, list)


@pytest.mark.parametrize("pasted", ["gsk_abcDEF0123456789abcdef", "aB3dE6gH9jK2mN5pQ8sT1vW4", "AIzaSyA-abcdefghijklmnop"])
def test_a_key_that_could_name_a_variable_is_not_repeated(pasted):
    with pytest.raises(SettingsError, match="api_key_env") as caught:
        make_client(validated(ClientSettings, HERE | {"api_key_env": pasted}), "small")
    assert pasted not in str(caught.value)


def test_nor_is_it_where_clients_have_no_key(tmp_path, monkeypatch):
    monkeypatch.delenv("R2V_ADMIN_KEY", raising=False)
    pasted = "gsk_abcDEF0123456789abcdef"
    with closing(Ledger(tmp_path / "ledger.db")) as ledger, pytest.raises(SettingsError) as caught:
        KeyRing(ServerSettings(key_env=pasted), ledger.keys)
    assert "server.key_env (which looks like a key" in str(caught.value) and pasted not in str(caught.value)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "ASIA_OPENAI_API_KEY_2", "my_key", "A" * 30 + "1"])
def test_a_variable_that_is_not_set_is_named(monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match=f"environment variable {name} is not set"):
        from_environment("api_key_env", name, "a key")
    monkeypatch.setenv(name, " secret\n")
    assert from_environment("api_key_env", name, "a key") == "secret"


def test_yaml_that_cannot_be_read_is_not_repeated(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text('version: 1\nteacher: {kind: chat, api_key_env: "sk-proj-12345678}\n')
    with pytest.raises(SettingsError, match=r"not valid YAML: .*line 2") as caught:
        load(path, RunSettings)
    assert "sk-proj" not in str(caught.value)
