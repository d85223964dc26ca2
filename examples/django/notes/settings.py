"""Settings: everything an enclave needs is in here or in the bundle's environment."""

import secrets
import tempfile
from pathlib import Path

# Signs cookies; of this process, as is everything that it keeps.
SECRET_KEY = secrets.token_hex()
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "notes.urls"
ASGI_APPLICATION = "notes.asgi.application"
INSTALLED_APPS = ["notes"]
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
SECURE_SSL_REDIRECT = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(tempfile.mkdtemp(prefix="notes-"), "notes.sqlite3"),
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
