# SPDX-License-Identifier: Apache-2.0
"""Calls servers of the program "calls" with grpcio: keys per call on one channel.

    calls.py ADDRESS KEY=NAME,... CALLS

NAME is who has to answer what is tagged with KEY. Prints a line of JSON for each case.
"""
import concurrent.futures
import json
import random
import sys
import threading

import grpc

address, pairs, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
targets = [tuple(pair.split("=", 1)) for pair in pairs.split(",")]
PATIENCE = 60

channel = grpc.insecure_channel(address, options=[
    ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)])
unary = channel.unary_unary("/calls/Echo")
total = channel.stream_unary("/calls/Sum")
repeat = channel.unary_stream("/calls/Repeat")
chat = channel.stream_stream("/calls/Chat")
sleep = channel.unary_stream("/calls/Sleep")
ended = channel.unary_unary("/calls/Ended")
status = channel.unary_unary("/calls/Status")


def metadata(key):
    return [("x-sidetrack-key", key)] if key else []


def checked(answer, name):
    server, rest = answer.split(b"|", 1)
    if server.decode() != name:
        raise AssertionError(f"{server.decode()} has answered, want {name}")
    return rest


def expect(got, want):
    if got != want:
        raise AssertionError(f"got {got!r:.200}, want {want!r:.200}")


def one(number):
    key, name = random.choice(targets)
    request = b"%d " % number + b"." * random.randrange(3000)
    if number % 5 == 0:
        expect([checked(m, name) for m in chat(iter([request, b"two"]), metadata=metadata(key), timeout=PATIENCE)], [request, b"two"])
    else:
        expect(checked(unary(request, metadata=metadata(key), timeout=PATIENCE), name), request)


def mixed():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in pool.map(one, range(count)):
            pass


def streaming():
    for key, name in targets:
        expect(checked(total(iter([b"x" * 1000] * 100), metadata=metadata(key), timeout=PATIENCE), name), b"100 100000")
        expect([len(checked(m, name)) for m in repeat(b"100 1000", metadata=metadata(key), timeout=PATIENCE)], [1000] * 100)


def large():
    for key, name in targets:
        request = random.Random(1).randbytes(4 << 20)
        expect(checked(unary(request, metadata=metadata(key), timeout=PATIENCE), name) == request, True)


def without_buffering():
    """A message comes before the next is sent."""
    for key, name in targets:
        turn = threading.Semaphore(1)

        def requests():
            for i in range(50):
                if not turn.acquire(timeout=PATIENCE):
                    return
                yield b"%d" % i

        for i, message in enumerate(chat(requests(), metadata=metadata(key), timeout=PATIENCE)):
            expect(checked(message, name), b"%d" % i)
            turn.release()


def gone(name, key, who):
    for _ in range(5000):
        if checked(ended(name, metadata=metadata(key), timeout=PATIENCE), who):
            return
    raise AssertionError("the server never heard of the call's end")


def ends():
    for key, name in targets:
        call = sleep(b"py-deadline-" + name.encode(), metadata=metadata(key), timeout=2)
        checked(next(call), name)
        try:
            next(call)
            raise AssertionError("a call outlived its deadline")
        except grpc.RpcError as e:
            # The server may be first, and it resets the stream.
            expect(e.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED), True)
        gone(b"py-deadline-" + name.encode(), key, name)
        call = sleep(b"py-cancel-" + name.encode(), metadata=metadata(key), timeout=PATIENCE)
        checked(next(call), name)
        call.cancel()
        gone(b"py-cancel-" + name.encode(), key, name)


def statuses():
    for key, name in targets:
        try:
            status("8 ☺ 100% of it".encode(), metadata=metadata(key), timeout=PATIENCE)
            raise AssertionError("a call that fails has not failed")
        except grpc.RpcError as e:
            expect((e.code(), e.details()), (grpc.StatusCode.RESOURCE_EXHAUSTED, "☺ 100% of it"))
            expect(dict(e.trailing_metadata()).get("x-trailer"), name)


for case in (mixed, streaming, large, without_buffering, ends, statuses):
    try:
        case()
        error = ""
    except Exception as e:  # whatever it is, it is what the case gave
        error = f"{type(e).__name__}: {e}"
    print(json.dumps({"Case": case.__name__.replace("_", " "), "Error": error}), flush=True)
