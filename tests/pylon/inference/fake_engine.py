"""A child that behaves like ``pylon.inference.engine`` without a model; the file given as model says how.

The settings' ``model`` is a JSON file: ``{"die": "at once" | "loading"}``, ``{"error": text}``, ``{"hang": true}``,
``{"stubborn": true}`` or ``{}``. A request whose prompt is ``die`` kills the process in the middle of its answer,
``wait`` is silent in its middle, ``lie`` gets what is no answer.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

settings = json.loads(sys.stdin.buffer.readline())
with open(settings["model"]) as file:
    manner = json.load(file)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if manner.get("hang"):
            time.sleep(60)
        if self.headers["Authorization"] != f"Bearer {settings['key']}":
            self.send_error(401)
            return
        body = json.dumps({"data": [{"id": settings["name"]}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        if self.headers["Authorization"] != f"Bearer {settings['key']}":
            self.send_error(401)
            return
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        *_, last = request["messages"]
        if last["content"] == "lie":
            self.wfile.write(b'data: {"status": "success", "output": "no answer"}\n\ndata: 7\n\n')
            return
        self.say(" ".join(m["role"] for m in request["messages"]))
        if last["content"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if last["content"] == "wait":
            time.sleep(60)
        self.say(f" pid {os.getpid()} {sorted(settings)}", "stop")

    def say(self, text, finish=None):
        event = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())


def end_with_parent():
    os.read(0, 1)
    if manner.get("stubborn"):
        time.sleep(60)
    os._exit(0)


threading.Thread(target=end_with_parent, daemon=True).start()
print("a word to the log", file=sys.stderr, flush=True)
if manner.get("die") == "loading":
    os.kill(os.getpid(), signal.SIGSEGV)
if manner.get("die") == "at once":
    os._exit(3)
if manner.get("error"):
    print(json.dumps({"error": manner["error"]}), flush=True)
    os._exit(1)
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(json.dumps({"port": server.server_port, "model": settings["name"]}), flush=True)
server.serve_forever()
