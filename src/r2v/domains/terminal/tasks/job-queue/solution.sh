set -e
cat > queue.py <<'P'
import json
import sys

MOST = 3


class Jobs:
    def __init__(self):
        self.jobs, self.last = {}, 0

    def settle(self, now):
        for n, job in list(self.jobs.items()):
            if job["state"] == "leased" and now >= job["until"]:
                if job["tries"] >= MOST:
                    del self.jobs[n]
                    continue
                job["state"] = "ready"
            if job["state"] == "waiting" and now >= job["until"]:
                job["state"] = "ready"

    def answer(self, request):
        if not isinstance(request, dict) or request.get("op") not in ("push", "take", "done", "fail", "count"):
            return {"error": "bad request"}
        now = request["now"]
        self.settle(now)
        return getattr(self, request["op"])(request, now)

    def push(self, request, now):
        self.last += 1
        self.jobs[self.last] = {
            "body": request["body"], "priority": request.get("priority", 0), "tries": 0, "state": "ready", "until": 0
        }
        return {"id": self.last}

    def take(self, request, now):
        ready = [(-job["priority"], n) for n, job in self.jobs.items() if job["state"] == "ready"]
        if not ready:
            return {"id": None}
        n = min(ready)[1]
        job = self.jobs[n]
        job.update(state="leased", until=now + request["lease"], tries=job["tries"] + 1)
        return {"id": n, "body": job["body"], "tries": job["tries"]}

    def leased(self, n):
        return n in self.jobs and self.jobs[n]["state"] == "leased"

    def done(self, request, now):
        if not self.leased(request["id"]):
            return {"ok": False}
        del self.jobs[request["id"]]
        return {"ok": True}

    def fail(self, request, now):
        n = request["id"]
        if not self.leased(n):
            return {"ok": False}
        if self.jobs[n]["tries"] >= MOST:
            del self.jobs[n]
        else:
            self.jobs[n].update(state="waiting", until=now + request["delay"])
            self.settle(now)
        return {"ok": True}

    def count(self, request, now):
        states = [job["state"] for job in self.jobs.values()]
        return {state: states.count(state) for state in ("ready", "leased", "waiting")}


if __name__ == "__main__":
    jobs = Jobs()
    for line in sys.stdin:
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        print(json.dumps(jobs.answer(request)), flush=True)
P
cat > test_queue.py <<'P'
import json
import subprocess
import sys
import unittest


class Queue(unittest.TestCase):
    def test_a_lease_runs_out(self):
        requests = [
            {"op": "push", "now": 0, "body": "a"},
            {"op": "take", "now": 1, "lease": 5},
            {"op": "done", "now": 6, "id": 1},
        ]
        text = "".join(json.dumps(request) + "\n" for request in requests)
        done = subprocess.run([sys.executable, "queue.py"], input=text, capture_output=True, text=True)
        self.assertEqual([json.loads(line) for line in done.stdout.splitlines()][2], {"ok": False})
P
python3 -m unittest -q
