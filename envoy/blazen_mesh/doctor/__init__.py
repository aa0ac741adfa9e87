"""What is wrong between two nodes, and what mends it: hops walked with the node's own certificate, both ends' logs joined."""

from blazen_mesh.doctor.causes import CAUSES, Cause
from blazen_mesh.doctor.examine import Visit, examine
from blazen_mesh.doctor.findings import Finding, Report
from blazen_mesh.doctor.logs import read_entries
from blazen_mesh.doctor.places import NodeFiles, find_nodes

__all__ = ["CAUSES", "Cause", "Finding", "NodeFiles", "Report", "Visit", "examine", "find_nodes", "read_entries"]
