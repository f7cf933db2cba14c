def write_report(results, episodes, out, *, title): (out/"report.html").write_text("x")
