"""Starting ranks: what launchers say in the environment, a launch over many hosts, and a run checked without one."""
