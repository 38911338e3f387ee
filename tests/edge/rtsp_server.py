"""An RTSP server on this machine, for the tests: GStreamer's, run by the system's Python, whose packages it needs
(Debian: python3-gi, gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good and, for H.264, gstreamer1.0-plugins-ugly).

    /usr/bin/python3 rtsp_server.py --codec h264 [--user NAME --password WORD] [--frames N] [--port P]

Prints the port once it listens; each client gets a red picture of 320x240 at 25 frames a second at /camera.
"""

from __future__ import annotations

import argparse
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

ENCODERS = {
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 "
    "! rtph264pay name=pay0 pt=96 config-interval=1",
    "mjpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--codec", choices=ENCODERS, default="h264")
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--frames", type=int, default=-1)
    parser.add_argument("--port", default="0")
    options = parser.parse_args()
    Gst.init(None)
    missing = [
        name for name in ENCODERS[options.codec].split(" ! ") if Gst.ElementFactory.find(name.split()[0]) is None
    ]
    if missing:
        sys.exit(f"missing: {', '.join(name.split()[0] for name in missing)}")
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(options.port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f"( videotestsrc is-live=true pattern=red num-buffers={options.frames} "
        f"! video/x-raw,format=I420,width=320,height=240,framerate=25/1 ! {ENCODERS[options.codec]} )"
    )
    if options.user:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "camera")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(options.user, options.password), token)
        server.set_auth(auth)
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role("camera", "media.factory.access", True)
        permissions.add_permission_for_role("camera", "media.factory.construct", True)
        factory.set_permissions(permissions)
    factory.set_protocols(GstRtsp.RTSPLowerTrans.TCP | GstRtsp.RTSPLowerTrans.UDP)
    server.get_mount_points().add_factory("/camera", factory)
    if not server.attach(None):
        sys.exit("the port is taken")
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
