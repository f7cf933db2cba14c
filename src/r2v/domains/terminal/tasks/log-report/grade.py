HIDDEN = """\
10.0.0.7 [2024-03-01T10:00:00Z] "GET /a b?x=1 HTTP/1.1" 200 41ms
10.0.0.7 [2024-03-01T10:00:01Z] "GET /a b HTTP/1.0" 500 7ms
10.0.0.7 [2024-03-01T10:00:02Z] "POST /a b HTTP/1.1" 500 999ms
broken line
10.0.0.8 [2024-03-01T10:00:03Z] "GET /old" 503 1200ms
10.0.0.8 [2024-03-01T10:00:03Z] "GET /old?a=?b HTTP/1.1" 404 3ms
10.0.0.9 [2024-03-01T10:00:04Z] "GET / HTTP/1.1" 499 5ms
10.0.0.9 [2024-03-01T10:00:05Z] "GET / HTTP/1.1" 200 60ms
10.0.0.9 [2024-03-01T10:00:06Z] "GET / HTTP/1.1" 200 50ms
10.0.0.9 [2024-03-01T10:00:07Z] "GET /late HTTP/1.1" 200
"""
WANTED = "path,requests,errors,slowest_ms\n/,3,0,60\n/a b,2,1,41\n/old,2,1,1200\n"
GIVEN = """\
path,requests,errors,slowest_ms
/cart,67,12,899
/img/logo.png,23,3,801
/login,22,3,874
/search,22,2,899
/,21,7,862
/checkout,18,3,899
"""


def grade(run):
    if run("cat report.csv").out != GIVEN:
        return "report.csv is wrong"
    run("cat > hidden.log", HIDDEN)
    return None if run("./report hidden.log").out == WANTED else "./report is wrong on another log"
