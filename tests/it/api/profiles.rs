use serde_json::{Value, json};

use crate::support;

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_created_changed_made_default_and_removed() {
    let service = support::service().await;
    service.project("p").await;
    let draft = json!({
        "name": "dim", "description": null, "project_module": "p", "is_default": true,
        "max_concurrent_executions": null,
        "translation": {"algo": "metis", "num_par": 2, "num_islands": 0, "tm_url": "http://tm:8084"},
        "deployment": {
            "kind": "rest_remote", "dim_host_for_tm": null, "dim_port_for_tm": null, "deploy_host": "dim",
            "deploy_port": 8001, "use_https": false, "verify_ssl": true,
        },
    });
    let created = service.post("/deployment-profiles", draft).await.is(201);
    assert_eq!(created["translation"]["num_islands"], 1, "0 counts as 1");
    assert_eq!((&created["revision"], &created["is_default"]), (&json!(1), &json!(true)));
    let one = format!("/deployment-profiles/{}", created["uuid"].as_str().unwrap());
    // Consoles send the whole answer back.
    let mut whole = created.clone();
    whole["description"] = json!("the DIM in the cellar");
    let changed = service.patch(&one, whole).await.is(200);
    assert_eq!((&changed["revision"], &changed["description"]), (&json!(2), &json!("the DIM in the cellar")));
    let changed = service.patch(&one, json!({"deployment": {"deploy_port": 8002}})).await.is(200);
    assert_eq!(
        (&changed["deployment"]["deploy_port"], &changed["deployment"]["deploy_host"]),
        (&json!(8002), &json!("dim"))
    );
    service.delete(&one).await.is(409);
    let changed = service.patch(&one, json!({"is_default": false})).await.is(200);
    assert_eq!((&changed["is_default"], &changed["revision"]), (&json!(false), &json!(3)));
    assert_eq!(service.get("/deployment-profiles").await.is(200).as_array().unwrap().len(), 1);
    assert_eq!(service.delete(&one).await.status.as_u16(), 204);
    service.get(&one).await.is(404);
    assert_eq!(service.get("/deployment-profiles").await.is(200), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_keeps_the_profile_it_was_created_with_and_holds_it() {
    let service = support::service().await;
    let execution = service.execution("p").await;
    let profiles = service.get("/deployment-profiles").await.is(200);
    let one = format!("/deployment-profiles/{}", profiles[0]["uuid"].as_str().unwrap());
    service.patch(&one, json!({"is_default": false, "description": "changed"})).await.is(200);
    let kept = service.get(&format!("/executions/{execution}")).await.is(200);
    assert_eq!(kept["deployment_profile_revision"], 1);
    let held = service.delete(&one).await.is(409);
    assert!(held["detail"].as_str().unwrap().contains(&execution.to_string()), "{held}");
    service.patch(&format!("/executions/{execution}"), json!({"status": "cancelled"})).await.is(200);
    assert_eq!(service.delete(&one).await.status.as_u16(), 204);
    let order = json!({"project_module": "p", "sources": [{"source_identifier": "A"}]});
    let refused: Value = service.post("/executions", order).await.is(422);
    assert!(refused.to_string().contains("default profile"), "{refused}");
}

fn slurm(changes: Value) -> Value {
    let mut deployment = json!({
        "kind": "slurm_remote", "login_node": "hpc.example.org", "ssh_port": null, "remote_user": "survey",
        "ssh_credential": "hpc", "account": "pawsey0411", "home_dir": "/home/survey", "log_dir": "/scratch/log",
        "dlg_root": "/scratch/dlg", "modules": null, "venv": "source /venv/bin/activate", "exec_prefix": "srun",
        "facility": "setonix", "job_duration_minutes": 60, "num_nodes": 2, "num_islands": 1, "container_runtime": "none",
        "resources": {"partition": "work", "memory": "8G", "constraint": "milan&bigmem"},
    });
    deployment.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    json!({"name": "hpc", "translation": {"algo": "metis", "num_par": 2, "num_islands": 1}, "deployment": deployment})
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_wrong_with_a_slurm_profile_is_said_at_once() {
    let service = support::service().await;
    let wrong = slurm(json!({
        "login_node": "-oProxyCommand=id", "ssh_port": 0, "remote_user": "x;rm -rf /", "ssh_credential": "../key",
        "account": "a\n#SBATCH --uid=0", "home_dir": "home", "log_dir": "/a/../b", "dlg_root": "/a b", "venv": "/venv",
        "modules": "module load a\r", "environment_setup": "#SBATCH --exclusive", "exec_prefix": " ",
        "job_duration_minutes": 0, "num_islands": 3, "container_runtime": "docker",
        "slurm_template": "#SBATCH --gres=gpu:1 --uid=0\n#SBATCH --job-name=x",
        "resources": {"partition": "work --uid=0", "memory": "8 GB", "quality_of_service": "", "tasks": 1},
    }));
    let refused = service.post("/deployment-profiles", wrong).await.is(422);
    let fields: Vec<&str> =
        refused["errors"].as_array().unwrap().iter().map(|error| error["field"].as_str().unwrap()).collect();
    for field in [
        "login_node",
        "ssh_port",
        "remote_user",
        "ssh_credential",
        "account",
        "home_dir",
        "log_dir",
        "dlg_root",
        "venv",
        "modules",
        "environment_setup",
        "exec_prefix",
        "job_duration_minutes",
        "num_islands",
        "container_runtime",
        "slurm_template",
        "resources.partition",
        "resources.memory",
        "resources.quality_of_service",
        "resources.tasks",
    ] {
        assert!(fields.contains(&format!("deployment.{field}").as_str()), "{field} is not among {fields:?}");
    }
    let created = service.post("/deployment-profiles", slurm(json!({}))).await.is(201);
    assert_eq!(created["deployment"]["resources"]["constraint"], "milan&bigmem");
    let one = format!("/deployment-profiles/{}", created["uuid"].as_str().unwrap());
    let changes = json!({"deployment": {"resources": {"wall_time_minutes": 527_041}}});
    let refused = service.patch(&one, changes).await.is(422);
    assert_eq!(refused["errors"][0]["field"], "deployment.resources.wall_time_minutes", "{refused}");
}
