import json

EFFECTIVE = {
    "name": "shop",
    "paths": {"root": "/home/me", "logs": "/home/me"},
    "hosts": ["a", "b", "c"],
    "cache": {"size": 10, "ttl": 5},
    "mirror": {"size": 10, "ttl": 5},
    "plugins": ["auth", "trace"],
}
CASES = (
    (['{"a": {"b": 1, "c": {"d": 2}}}', '{"a": {"c": {"d": null, "e": [3]}}}'], {"a": {"b": 1, "c": {"e": [3]}}}),
    (['{"a": 1}', '{"a": {"b": 2}}', '{"a": null}'], {}),
    (['{"l": [1]}', '{"l+": [1, 2, 2]}', '{"l": [9], "l+": [8]}'], {"l": [9, 8]}),
    (['{"x": {"y+": ["p"]}}'], {"x": {"y": ["p"]}}),
    (['{"a": "${b}", "b": "${c.d}", "c": {"d": [1, "${e}"]}, "e": false}'],
     {"a": [1, False], "b": [1, False], "c": {"d": [1, False]}, "e": False}),
    (['{"a": "${b}"}', '{"b": {"k": "x ${a}"}}'], {"a": {"k": "x ${a}"}, "b": {"k": "x ${a}"}}),
    (['{"a": "${b}"}'], None),
    (['{"a": "${b.c}", "b": {"c": "${a}"}}'], None),
    (['{"a": {"b": "${a}"}}'], None),
    (['{"a": 1}', '{"a+": [1]}'], None),
    (['[1]'], None),
    (['{"a": 1}', '{oops'], None),
)  # fmt: skip


def in_order(pairs):
    if pairs != sorted(pairs, key=lambda pair: pair[0]):
        raise ValueError("the keys are not sorted")
    return dict(pairs)


def grade(run):
    if json.loads(run("cat effective.json").out) != EFFECTIVE:
        return "effective.json is wrong"
    for files, wanted in CASES:
        names = " ".join(f"hidden{i}.json" for i in range(len(files)))
        run("split -l 1 -d -a 1 --additional-suffix=.json - hidden", "\n".join(files) + "\n")
        answer = run(f"python3 merge.py {names} 2> error.txt")
        if wanted is None:
            if (answer.code, answer.out, run("wc -l < error.txt").out.strip()) != (2, "", "1"):
                return f"an error goes unnoticed: {files}"
        elif json.loads(answer.out, object_pairs_hook=in_order) != wanted:
            return f"the merge is wrong: {files}"
    return None
