# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of every module that asks the API of a cluster."""

from __future__ import annotations


class ModuleDocFragment:
    """How the API is reached; `API_ARGUMENTS` of `module_utils/kubernetes_api.py` is the same for programs."""

    DOCUMENTATION = r"""
options:
  kubeconfig:
    description: The kubeconfig on the host, as kubeadm writes it.
    type: path
    default: /etc/kubernetes/admin.conf
  servers:
    description: URLs of other API servers of the same cluster, for when the one of the kubeconfig does not answer.
    type: list
    elements: str
    default: []
"""
