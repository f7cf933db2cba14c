FIRST, TREE = (
    "221bca136823cedbb4a3ef3ef1df4e7dc4ce4ca0",
    "3b565d6a9632d737b39ecdfc90b98ee1c41e96ec",
)  # of the start folder, whose dates are fixed


def grade(run):
    if run("git log --format=%s main").out.splitlines() != ["Write the manual", "Add the parser", "Start"]:
        return "main does not end in the two commits"
    if run("git rev-parse main~2 main^{tree}").out.split() != [FIRST, TREE]:
        return "the first commit or the content in sum has changed"
    if run("git diff --name-only main~2 main~1").out.split() != ["src/main.py", "src/parser.py"]:
        return "the first of the two does not hold the changes below src alone"
    return None if run("git status --porcelain").out == "" else "the working tree is not clean"
