import hashlib
import json

DRIVER = """
import json, tarfile
found = []
with tarfile.open("release.tar.gz", "r:gz") as archive:
    for m in archive:
        text = archive.extractfile(m).read().decode() if m.isreg() else m.linkname
        owner = [m.uid, m.gid, m.uname, m.gname, m.mtime]
        found.append([m.name.rstrip("/"), m.type.decode(), None if m.issym() else m.mode & 0o7777, owner, text])
print(json.dumps(found))
"""
FILES = {
    "README": "text\n",
    "bin/demo": "#!/bin/sh\necho demo\n",
    "lib/a.py": "x = 1\n",
    "lib/deep/b c.py": "y = 2\n",
}
SUMS = "".join(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in sorted(FILES.items()))
WANTED = sorted(
    [
        [f"demo-2.1/{n}", "0", 0o755 if n.startswith("bin/") else 0o644, text]
        for n, text in {**FILES, "SHA256SUMS": SUMS}.items()
    ]
    + [[f"demo-2.1{n}", "5", 0o755, ""] for n in ("", "/bin", "/lib", "/lib/deep")]
    + [["demo-2.1/main.py", "2", None, "lib/a.py"]]
)
PROJECT = "600 README\n644 README.bak\n600 bin/demo\n777 lib/a.py\n644 lib/a.py~\n700 lib/deep\n"


def grade(run):
    modes = run("cd project && stat -c '%a %n' README README.bak bin/demo lib/a.py lib/a.py~ lib/deep && test -f cache/junk")
    if modes.code != 0 or modes.out != PROJECT:
        return "project was changed"
    found = json.loads(run(f"python3 -c '{DRIVER}'").out)
    names = [entry[0] for entry in found]
    if names != sorted(names):
        return "the members are not sorted"
    if any(entry[3] != [0, 0, "root", "root", 1704067200] for entry in found):
        return "an owner or a time is wrong"
    return (
        None if [[n, t, mode, text] for n, t, mode, _, text in found] == WANTED else "members, modes or contents are wrong"
    )
