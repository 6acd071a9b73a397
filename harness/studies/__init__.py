"""The built-in studies, as YAML files."""
