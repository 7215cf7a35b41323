"""A small process that starts others and says what they took.

Linux counts to a child's peak memory what its parent had when it became another program, so whoever reads that number
must be small: this one imports nothing. Requests and answers are marshalled, on stdin and stdout.
"""

import marshal
import os
import sys
import time

# Program, environment, stdin; and the seconds it took, of CPU too, its peak in KB, its exit status and stdout.
Job = "tuple[list[str], dict[str, str], bytes]"
Done = "tuple[float, float, int, int, bytes]"


def run(jobs: "list[Job]") -> "tuple[float, list[Done]]":
    """Start all jobs at once; return the time until the last one ended, and what each of them took."""
    started, outputs, done = {}, {}, {}
    nothing = os.open("/dev/null", os.O_WRONLY)
    first = time.perf_counter()
    for number, (words, environ, stdin) in enumerate(jobs):
        source, outputs[number] = os.memfd_create("stdin"), os.memfd_create("stdout")
        os.write(source, stdin)
        os.lseek(source, 0, os.SEEK_SET)
        places = ((source, 0), (outputs[number], 1), (nothing, 2))
        actions = [(os.POSIX_SPAWN_DUP2, descriptor, place) for descriptor, place in places]
        begin = time.perf_counter()
        started[os.posix_spawn(words[0], words, environ, file_actions=actions)] = number, begin
        os.close(source)
    while started:
        pid, status, used = os.wait4(-1, 0)
        number, begin = started.pop(pid)
        done[number] = time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss, status
    took = time.perf_counter() - first
    os.close(nothing)
    return took, [(*done[number], _content(outputs[number])) for number in range(len(jobs))]


def _content(descriptor: int) -> bytes:
    content = os.pread(descriptor, 1 << 20, 0)
    os.close(descriptor)
    return content


if __name__ == "__main__":
    while True:
        try:
            wanted = marshal.load(sys.stdin.buffer)
        except EOFError:
            break
        marshal.dump(run(wanted), sys.stdout.buffer)
        sys.stdout.buffer.flush()
