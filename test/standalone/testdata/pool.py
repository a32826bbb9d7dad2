# SPDX-License-Identifier: Apache-2.0
"""A client with a connection pool: requests, httpx or httpx-async.

Reads batches from standard input: a line "batch CONCURRENCY COUNT", then COUNT
lines of METHOD, URL, WANTED SERVER, NUMBER, LENGTH OF BODY and header lines,
separated by tabs. Answers each batch with one line: "COUNT WRONG" and what was
wrong first. The pool lives as long as the program.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

KIND = sys.argv[1]
POOL = 64

if KIND == "requests":
    import requests
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    session.trust_env = False
    session.mount("http://", HTTPAdapter(pool_connections=POOL, pool_maxsize=POOL))

    def send(method, url, headers, body):
        r = session.request(method, url, headers=headers, data=body, timeout=30)
        return r.status_code, r.headers

elif KIND == "httpx":
    import httpx

    session = httpx.Client(trust_env=False, timeout=30, limits=httpx.Limits(max_connections=POOL, max_keepalive_connections=POOL, keepalive_expiry=60))

    def send(method, url, headers, body):
        r = session.request(method, url, headers=headers, content=body)
        return r.status_code, r.headers

else:
    import httpx

    session = httpx.AsyncClient(trust_env=False, timeout=30, limits=httpx.Limits(max_connections=POOL, max_keepalive_connections=POOL, keepalive_expiry=60))


def parse(line):
    method, url, want, number, length, *lines = line.rstrip("\n").split("\t")
    headers = dict(h.split(": ", 1) for h in lines)
    headers["X-Number"], headers["X-Expect"] = number, want
    return method, url, want, number, headers, b"x" * int(length) if int(length) else None


def judge(want, number, status, headers):
    got = headers.get("X-Served-By"), headers.get("X-Number")
    if status == 200 and got == (want, number):
        return None
    return f"request {number}: status {status}, served by {got[0]} as number {got[1]}, want {want}"


def one(line):
    method, url, want, number, headers, body = parse(line)
    try:
        return judge(want, number, *send(method, url, headers, body))
    except Exception as e:
        return f"request {number}: {e!r}"


async def one_async(line, gate):
    method, url, want, number, headers, body = parse(line)
    async with gate:
        try:
            r = await session.request(method, url, headers=headers, content=body)
            return judge(want, number, r.status_code, r.headers)
        except Exception as e:
            return f"request {number}: {e!r}"


async def batch_async(lines, concurrency):
    gate = asyncio.Semaphore(concurrency)
    return await asyncio.gather(*(one_async(line, gate) for line in lines))


def main():
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(POOL) as threads:
        for head in sys.stdin:
            _, concurrency, count = head.split()
            lines = [sys.stdin.readline() for _ in range(int(count))]
            if KIND == "httpx-async":
                results = loop.run_until_complete(batch_async(lines, int(concurrency)))
            else:
                threads._max_workers = int(concurrency)
                results = list(threads.map(one, lines))
            wrong = [r for r in results if r]
            print(len(lines), len(wrong), *wrong[:1], flush=True)


main()
