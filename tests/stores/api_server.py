"""An API server stand-in, a real process on a free loopback port: custom resources of our groups, a little core.

    with ApiServer(directory) as server:
        server.kubeconfig, server.switch(throttle=3), server.counts()

It does what the documentation of the API says, and what upstream's code relies on; the objects are in api_objects.
Run as a program it serves until its stdin ends. ``switch`` changes how it behaves:

    tokens        {token: name of an RBAC manifest of conf/deploy, or "*"}; without tokens everybody may do everything
    throttle      that many next requests get 429 with retry_after
    fail          that many next requests get 503
    lose          that many next changing requests are done, and their connection is cut before the answer
    drop          that many next requests are read and their connection is cut
    delay_s       every answer waits so long; patch_delay_s: a patch waits between reading and writing
    expire        that many next list pages that are not the first get 410
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.stores.api_objects import ApiError, Objects
from tests.stores.api_schema import CORE, read_crds
from tests.stores.etcd_server import free_port

DEPLOY = Path(__file__).resolve().parents[2] / "conf" / "deploy"
MAX_BODY = 3 * 1024 * 1024
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_METADATA_ONLY = "as=PartialObjectMetadata"
_TOKEN = re.compile(r"/api/v1/namespaces/[^/]+/serviceaccounts/[^/]+/token")
DEFAULTS = {
    "tokens": None, "throttle": 0, "retry_after": 1, "fail": 0, "lose": 0, "drop": 0, "delay_s": 0.0,
    "patch_delay_s": 0.0, "expire": 0,
}  # fmt: skip


class Served:
    """One request of an API client."""

    def __init__(self, method, target, headers, body):
        parts = urlsplit(target)
        self.method, self.headers, self.body = method, headers, body
        self.path = unquote(parts.path)
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}

    def json(self):
        try:
            return json.loads(self.body or b"{}")
        except ValueError:
            raise ApiError(400, "BadRequest", "the body is not JSON") from None


class Server:
    """The behaviour behind the port."""

    def __init__(self):
        self.objects = Objects()
        self.resources = {(r.group, r.version, r.plural): r for r in [*CORE, *read_crds()]}
        self.switches = dict(DEFAULTS)
        self.reset()

    def reset(self):
        self.requests, self.received, self.sent, self.log = Counter(), Counter(), Counter(), []

    async def connection(self, reader, writer):
        try:
            while (request := await self._read(reader)) is not None:
                if not await self._answer(request, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def _read(self, reader):
        head = await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""
        if not head:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Served(method, target, headers, body)

    async def _answer(self, request, writer):
        if request.path.startswith("/_stand_in/"):
            return await _send(writer, 200, self._control(request), {})
        self.requests[request.method] += 1
        self.received[request.method] += len(request.body)
        self.log.append(f"{request.method} {request.path}")
        if self._due("drop"):
            return False
        world = self.objects
        await asyncio.sleep(self.switches["delay_s"])
        if world is not self.objects:
            return False  # it was asked of objects that another test has cleared since
        headers = {}
        try:
            code, answer = await self._serve(request)
            if code < 300 and "spec" in answer and _METADATA_ONLY in request.headers.get("accept", ""):
                answer = _metadata_of(answer)
        except ApiError as error:
            code, answer, headers = error.code, error.status(), error.headers
            if code == 429:  # what limits requests is in front of all that knows of objects
                answer = f"{error.message}\n".encode()
        if request.method != "GET" and self._due("lose"):
            return False
        document = answer if isinstance(answer, bytes) else json.dumps(answer, separators=(",", ":")).encode()
        self.sent[request.method] += len(document)
        return await _send(writer, code, document, headers)

    def _due(self, switch):
        self.switches[switch] -= (due := self.switches[switch] > 0)
        return due

    def _control(self, request):
        if request.path == "/_stand_in/switches":
            self.switches |= request.json()
            self.objects.patch_delay_s = self.switches["patch_delay_s"]
        elif request.path == "/_stand_in/reset":
            self.reset()
        elif request.path == "/_stand_in/clear":
            self.objects, self.switches = Objects(), dict(DEFAULTS)
            self.reset()
        counts = {"requests": self.requests, "received": self.received, "sent": self.sent, "log": self.log}
        return json.dumps(counts).encode()

    async def _serve(self, request):
        if self._due("throttle"):
            message = "Too many requests, please try again later."
            raise ApiError(429, "TooManyRequests", message, headers={"Retry-After": str(self.switches["retry_after"])})
        if self._due("fail"):
            raise ApiError(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        if len(request.body) > MAX_BODY:
            raise ApiError(413, "RequestEntityTooLarge", f"limit is {MAX_BODY}")
        user = self._authenticated(request)
        if request.method == "POST" and _TOKEN.fullmatch(request.path):
            return 201, {**request.json(), "status": {"token": "a service account's"}}
        found = self._resource(request.path)
        if found is None:
            return 404, b"404 page not found\n"
        resource, namespace, name = found
        self._authorize(user, request.method, resource, namespace, name)
        return await self._do(request, resource, namespace, name)

    def _authenticated(self, request):
        tokens = self.switches["tokens"]
        if tokens is None:
            return "*"
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or token not in tokens:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        return tokens[token]

    def _authorize(self, user, method, resource, namespace, name):
        verb = _VERBS.get(method) or ("get" if name else "list")
        if user == "*" or any(_permits(rule, verb, resource, namespace) for rule in read_rules(user)):
            return
        message = f'{resource.plural}.{resource.group} is forbidden: User "stand-in" cannot {verb} them'
        raise ApiError(403, "Forbidden", message)

    def _resource(self, path):
        parts = path.strip("/").split("/")
        group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (*parts[1:3], parts[3:])
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        resource = self.resources.get((group, version, rest[0])) if 0 < len(rest) < 3 else None
        if resource is None or (namespace and not resource.namespaced):
            return None
        name = rest[1] if len(rest) == 2 else ""
        if resource.namespaced and not namespace:
            if name:
                return None
            namespace = None  # every namespace
        return resource, namespace, name

    async def _do(self, request, resource, namespace, name):
        method, objects, dry_run = request.method, self.objects, request.query.get("dryRun") == "All"
        if method == "GET":
            return 200, (objects.get(resource, namespace, name) if name else self._list(request, resource, namespace))
        if namespace is None or (method == "POST") == bool(name):
            raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        if method == "POST":
            return 201, objects.create(resource, namespace, request.json(), dry_run=dry_run)
        if method == "PUT":
            return 200, objects.replace(resource, namespace, name, request.json(), dry_run=dry_run)
        if method == "PATCH":
            kind = request.headers.get("content-type", "").partition(";")[0]
            return 200, await objects.patch(resource, namespace, name, request.json(), kind, dry_run=dry_run)
        options = request.json()
        if request.body:
            dry_run = options.get("dryRun") == ["All"]  # of a request with a body nothing else is read
        return 200, objects.delete(resource, namespace, name, options, dry_run=dry_run)

    def _list(self, request, resource, namespace):
        query = request.query
        if "continue" in query and self._due("expire"):
            self.objects.expire_tokens()
        items, version, token, left = self.objects.list(
            resource,
            namespace,
            selector=query.get("labelSelector", ""),
            limit=_number(query.get("limit", "0")),
            token=query.get("continue", ""),
            cached=query.get("resourceVersion") == "0",
        )
        metadata = {"resourceVersion": str(version)}
        if token or _METADATA_ONLY not in request.headers.get("accept", ""):
            metadata["continue"] = token  # of custom resources the whole list has one that is empty, too
        if token and not query.get("labelSelector"):
            metadata["remainingItemCount"] = left
        if _METADATA_ONLY in request.headers.get("accept", ""):
            kind, api_version = "PartialObjectMetadata", "meta.k8s.io/v1"
            items = [_metadata_of(item) for item in items]
        else:
            kind, api_version = resource.kind, resource.api_version
        return {"kind": f"{kind}List", "apiVersion": api_version, "metadata": metadata, "items": items}


def _number(text):
    try:
        return int(text)
    except ValueError:
        raise ApiError(400, "BadRequest", f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def _metadata_of(obj):
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def read_rules(manifest):
    """Yield the rules of the roles of one of our manifests, with the namespace that bounds them."""
    for document in yaml.safe_load_all((DEPLOY / manifest).read_text()):
        if document and document["kind"] in ("Role", "ClusterRole"):
            for rule in document["rules"]:
                yield {**rule, "namespace": document["metadata"].get("namespace")}


def _permits(rule, verb, resource, namespace):
    return (
        verb in rule["verbs"]
        and resource.plural in rule["resources"]
        and resource.group in rule["apiGroups"]
        and rule["namespace"] in (None, namespace)
    )


async def _send(writer, code, document, headers):
    kind = "application/json" if document[:1] in b"{[" else "text/plain"
    head = {"Content-Type": kind, "Content-Length": len(document), "Date": formatdate(usegmt=True), **headers}
    lines = "".join(f"{key}: {value}\r\n" for key, value in head.items())
    writer.write(f"HTTP/1.1 {code} {code}\r\n{lines}\r\n".encode() + document)
    await writer.drain()
    return True


async def serve(options):
    tls = None
    if "cert" in options:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options["cert"], options["key"])
        if "client_ca" in options:
            tls.load_verify_locations(options["client_ca"])
            tls.verify_mode = ssl.CERT_REQUIRED
    listening = await asyncio.start_server(
        Server().connection, "127.0.0.1", options.get("port", 0), ssl=tls, backlog=1024, limit=2**22
    )
    print(listening.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    # The process goes when whoever started it does, however that ended.
    threading.Thread(
        target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set_result, None)), daemon=True
    ).start()
    await ended


class ApiServer:
    """The stand-in as a test has it: a process, its kubeconfig, its switches and counters."""

    def __init__(self, directory, *, namespace="kube-system", token=None, **tls):
        self.directory, self.namespace, self.token, self.tls = Path(directory), namespace, token, tls
        self.port = 0

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        """Start it, on the port it had before if it was started before."""
        self.port = self.port or free_port()
        options = {**{key: str(value) for key, value in self.tls.items() if key != "ca"}, "port": self.port}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.stores.api_server", json.dumps(options)],
            cwd=DEPLOY.parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        told = self.process.stdout.readline()
        assert told, f"it ended with {self.process.wait()}"
        self.write_kubeconfig(token=self.token)

    def stop(self):
        self.process.stdin.close()
        self.process.wait(120)
        self.process.stdout.close()

    @property
    def url(self):
        return f"http{'s' if 'cert' in self.tls else ''}://127.0.0.1:{self.port}"

    @property
    def kubeconfig(self):
        return self.directory / "kubeconfig"

    def write_kubeconfig(self, *, path=None, cluster=None, user=None, token=None):
        """Write the file that leads here, as an installer does, and return its path."""
        cluster = {
            "server": self.url,
            **({"certificate-authority": str(self.tls["ca"])} if "ca" in self.tls else {}),
        } | (cluster or {})
        user = {**({"token": token} if token else {}), **(user or {})}
        context = {"cluster": "c", "user": "u", "namespace": self.namespace}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": context}],
            "current-context": "x",
        }
        path = path or self.kubeconfig
        path.write_text(yaml.safe_dump(document))
        return path

    def switch(self, **switches):
        self._control("switches", json.dumps(switches).encode())

    def reset(self):
        self._control("reset", b"")

    def clear(self):
        """Forget every object and switch."""
        self._control("clear", b"")

    def counts(self):
        return self._control("counts", b"")

    def _control(self, name, body):
        context = ssl._create_unverified_context() if "cert" in self.tls else None
        with urllib.request.urlopen(
            f"{self.url}/_stand_in/{name}", body or None, context=context, timeout=120
        ) as answer:
            return json.load(answer)


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
