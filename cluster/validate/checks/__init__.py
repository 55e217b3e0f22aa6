"""All checks of rendered manifests, by name."""

from cluster.validate.checks.disruption import disruption_budgets
from cluster.validate.checks.images import image_variant, images_are_pinned, redis_has_a_password, redis_is_fixed
from cluster.validate.checks.kuberay import kuberay_accepts
from cluster.validate.checks.network import egress, metadata_server, ray_ports
from cluster.validate.checks.observing import exporters, logs_are_visible
from cluster.validate.checks.references import references_exist, valid_objects, valid_pods
from cluster.validate.checks.routes import routes_lead_to_the_service
from cluster.validate.checks.scheduling import fits_nodes, gpus_are_hidden, jobs_run_on_gpu_nodes, survives_a_lost_node
from cluster.validate.checks.security import pod_security, read_only_root
from cluster.validate.checks.serving import replicas_fit, service_accepts
from cluster.validate.checks.storage import claims, models_are_pulled
from cluster.validate.finding import Check

__all__ = ["CHECKS"]

CHECKS: dict[str, Check] = {
    check.__name__.replace("_", "-"): check
    for check in (
        valid_objects,
        valid_pods,
        references_exist,
        kuberay_accepts,
        service_accepts,
        replicas_fit,
        routes_lead_to_the_service,
        disruption_budgets,
        claims,
        models_are_pulled,
        image_variant,
        egress,
        metadata_server,
        ray_ports,
        survives_a_lost_node,
        pod_security,
        read_only_root,
        redis_is_fixed,
        redis_has_a_password,
        images_are_pinned,
        fits_nodes,
        jobs_run_on_gpu_nodes,
        gpus_are_hidden,
        exporters,
        logs_are_visible,
    )
}
