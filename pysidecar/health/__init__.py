"""Health checks: endpoints are asked whether they are well, and the data plane is told.

``checks.py`` composes: which endpoints, and what becomes of their answers. ``prober.py`` has the
sockets. ``kinds/`` has a module for each kind of check, without I/O."""
