"""T14: requests made from our own OpenAPI document, valid and broken ones: no 5xx, nothing that the document denies.

`--count` is the number of generated requests for each operation (1,000 for the full run).
"""

import re
import subprocess
import sys
import time
from pathlib import Path

from tests.reliability.harness import arguments, laboratory, verdict
from tests.reliability.web import web

# A name that exists nowhere is valid by the document and refused all the same; that is not what this looks for.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,allow_header_conformance,negative_data_rejection"
)


def main() -> int:
    options = arguments(__doc__, count=1000, seconds=0, phases="examples,coverage,fuzzing")
    breaches: list[str] = []
    began = time.monotonic()
    with laboratory(options.db, without=options.without) as lab, web(lab) as server:
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{server.url}/api/v1/openapi.json",
            *("--max-examples", str(options.count), "--seed", str(options.seed), "--continue-on-failure"),
            *("--checks", CHECKS, "--phases", options.phases, "--no-color", "--warnings", "off"),
            # Streams that stay open for as long as a job runs are followed in tests/backend/api/test_events.py.
            *("--exclude-path", "/api/v1/jobs/{id}/events", "--workers", "2"),
        ]
        if options.seconds:
            command += ["--max-time", str(options.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=lab.folder)
        output = done.stdout + done.stderr
        alive = server.client.get("/healthz").status_code == 200
    if done.returncode != 0:
        failures = re.findall(r"^(?:_{3,} )?((?:GET|POST|PUT|DELETE|PATCH|HEAD) \S+)", output, re.MULTILINE)
        breaches += [f"schemathesis exited {done.returncode}: {', '.join(sorted(set(failures))[:10])}", output[-6000:]]
    if not alive:
        breaches.append("the server is gone")
    cases = re.search(r"([\d,]+) generated", output)
    return verdict(
        "schemathesis",
        options,
        breaches,
        cases=int(cases[1].replace(",", "")) if cases else 0,
        wall_s=round(time.monotonic() - began, 1),
    )


if __name__ == "__main__":
    sys.exit(main())
