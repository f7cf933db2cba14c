import json

BAD = {"error": "bad request"}
SCRIPTS = (
    (
        ({"op": "take", "now": 0, "lease": 5}, {"id": None}),
        ({"op": "push", "now": 0, "body": {"a": [1]}}, {"id": 1}),
        ({"op": "push", "now": 1, "body": "two", "priority": 3}, {"id": 2}),
        ({"op": "push", "now": 1, "body": None, "priority": 3}, {"id": 3}),
        ({"op": "take", "now": 2, "lease": 5}, {"id": 2, "body": "two", "tries": 1}),
        ({"op": "take", "now": 2, "lease": 5}, {"id": 3, "body": None, "tries": 1}),
        ({"op": "count", "now": 6.9}, {"ready": 1, "leased": 2, "waiting": 0}),
        ({"op": "done", "now": 6.9, "id": 3}, {"ok": True}),
        ({"op": "done", "now": 7, "id": 2}, {"ok": False}),
        ({"op": "take", "now": 7, "lease": 1}, {"id": 2, "body": "two", "tries": 2}),
        ({"op": "fail", "now": 7.5, "id": 2, "delay": 10}, {"ok": True}),
        ({"op": "count", "now": 8}, {"ready": 1, "leased": 0, "waiting": 1}),
        ({"op": "take", "now": 9, "lease": 100}, {"id": 1, "body": {"a": [1]}, "tries": 1}),
        ({"op": "take", "now": 17.5, "lease": 1}, {"id": 2, "body": "two", "tries": 3}),
        ({"op": "count", "now": 18.5}, {"ready": 0, "leased": 1, "waiting": 0}),
        ({"op": "nonsense", "now": 19}, BAD),
        ({"op": "push", "now": 20, "body": 4}, {"id": 4}),
    ),
    (
        ({"op": "push", "now": 5, "body": 0, "priority": -1}, {"id": 1}),
        ({"op": "push", "now": 5, "body": 1}, {"id": 2}),
        ({"op": "take", "now": 5, "lease": 1}, {"id": 2, "body": 1, "tries": 1}),
        ({"op": "fail", "now": 5, "id": 2, "delay": 0}, {"ok": True}),
        ({"op": "take", "now": 5, "lease": 1}, {"id": 2, "body": 1, "tries": 2}),
        ({"op": "fail", "now": 5, "id": 2, "delay": 0}, {"ok": True}),
        ({"op": "fail", "now": 5, "id": 2, "delay": 0}, {"ok": False}),
        ({"op": "take", "now": 5, "lease": 1}, {"id": 2, "body": 1, "tries": 3}),
        ({"op": "fail", "now": 5, "id": 2, "delay": 0}, {"ok": True}),
        ({"op": "take", "now": 5, "lease": 1}, {"id": 1, "body": 0, "tries": 1}),
        ({"op": "done", "now": 5, "id": 77}, {"ok": False}),
        ({"op": "count", "now": 5}, {"ready": 0, "leased": 1, "waiting": 0}),
    ),
)


def grade(run):
    for script in SCRIPTS:
        text = "".join(json.dumps(request) + "\n" for request, _ in script)
        answers = [json.loads(line) for line in run("python3 queue.py", text).out.splitlines()]
        if answers != [wanted for _, wanted in script]:
            return "queue.py breaks its protocol"
    if [json.loads(line) for line in run("python3 queue.py", "{oops\n[1]\n").out.splitlines()] != [BAD, BAD]:
        return "bad requests are not answered as such"
    tested = run("test -s test_queue.py && python3 -m unittest 2>&1")
    return None if tested.code == 0 and "Ran 0 tests" not in tested.out else "test_queue.py is missing or fails"
