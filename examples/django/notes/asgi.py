"""What serves the notes, in an enclave as anywhere else."""

import os

from django.core.asgi import get_asgi_application
from django.core.management import call_command

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "notes.settings")
application = get_asgi_application()
# The database is as old as this process.
call_command("migrate", run_syncdb=True, verbosity=0)
