"""The one thing pyproject.toml cannot say: the ring code is a cffi extension (API mode, stable ABI)."""

from setuptools import setup

setup(cffi_modules=["vhost_user/_vring_build.py:ffibuilder"])
