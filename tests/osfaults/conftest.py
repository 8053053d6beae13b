"""Programs are found as for deploy/."""

from tests.deploy.conftest import program as program
