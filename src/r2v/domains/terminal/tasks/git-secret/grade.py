SUBJECTS = ["Greet everybody", "Collect the settings", "Release 1.0", "Add deployment", "Say hello"]


def grade(run):
    if run("git log --format=%s main").out.splitlines() != SUBJECTS:
        return "the commits of main are not the old ones in their order"
    if run("git grep -q tide-4417-orchid $(git rev-list --branches --tags)").code != 1:
        return "a commit still holds the key"
    listed = run("git rev-list --objects --branches --tags | cut -d ' ' -f 2-").out.splitlines()
    if {"deploy/credentials.ini", "settings/login.ini"} & set(listed):
        return "a commit still holds the file"
    if (
        run("git log -1 --format=%s v1.0; git merge-base --is-ancestor v1.0 main && echo inside").out
        != "Release 1.0\ninside\n"
    ):
        return "v1.0 is not on the rewritten release"
    files = run("git ls-tree -r --name-only main; git show main:settings/app.ini main:deploy/run.sh main:app.py").out
    wanted = "app.py\ndeploy/run.sh\nsettings/app.ini\n" + 'region = north\nset -e\npython3 app.py\nprint("hello, all")\n'
    return None if files == wanted else "other files were lost or changed"
