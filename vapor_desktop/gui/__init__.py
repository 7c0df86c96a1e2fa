"""The console's window, in Qt: it shows what the engine says and asks it to act."""

import os

# libvirt's event loop (virEventRegisterDefaultImpl, libvirt 9.0) iterates GLib's default context in a thread of its
# own, and Qt's main thread lives in the same context when it uses GLib: libvirt's thread then runs the window's
# timers, and the console dies of a segmentation fault within minutes (seen in a core dump). Qt reads this variable
# when the application is made; its own dispatcher does all that the console needs.
os.environ["QT_NO_GLIB"] = "1"
