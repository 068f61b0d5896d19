//! Callers of another host: a real agent with a port, and certificates that openssl(1) made.

use std::path::{Path, PathBuf};

use anyhow::Result;
use nodeagent_tests::authority::Authority;
use nodeagent_tests::documents::Task;
use nodeagent_tests::{Answer, TestHost};

const SERVER: &str = "https://127.0.0.1:7443";

/// Certificates in a directory of the test's own.
struct Certificates(PathBuf);

impl Certificates {
    fn make(directory: PathBuf) -> Result<Self> {
        let authority = Authority::create(&directory)?;
        authority.sign("agent", "subjectAltName=IP:127.0.0.1")?;
        authority.sign("dashboard", "subjectAltName=DNS:dashboard")?;
        authority.sign("scheduler", "subjectAltName=DNS:scheduler")?;
        Ok(Self(directory))
    }

    fn config(directory: &Path) -> String {
        let file = |name: &str| directory.join(name).display().to_string();
        format!(
            "[discovery.file]\npropagation_bound = \"1s\"\n[api.tls]\nlisten = \"127.0.0.1:7443\"\ncertificate = \"{}\"\nkey = \"{}\"\nclient_ca = \"{}\"\nview = [\"cn:dashboard\"]\noperate = [\"dns:scheduler\"]\n",
            file("agent.pem"),
            file("agent.key"),
            file("ca.pem")
        )
    }

    fn run(&self, host: &TestHost, who: &str, arguments: &[&str]) -> Result<Answer> {
        let file = |name: String| self.0.join(name).display().to_string();
        let (cert, key) = (file(format!("{who}.pem")), file(format!("{who}.key")));
        let ca = file("ca.pem".to_owned());
        let own = [
            "--server", SERVER, "--cert", &cert, "--key", &key, "--ca", &ca,
        ];
        host.cli().run(&[arguments, &own[..]].concat())
    }
}

#[test]
fn a_scheduler_on_another_host_activates_and_a_dashboard_may_not() -> Result<()> {
    let mut host = TestHost::without_agent("")?;
    let directory = host.ground.path("tls");
    let certificates = Certificates::make(directory.clone())?;
    host.agent.configure(&Certificates::config(&directory))?;
    host.agent.start(&host.ground)?;
    host.warm_web(1)?;
    let activate = [
        "activate",
        "web",
        "--to",
        "1",
        "--task-id",
        "far-1",
        "-o",
        "json",
    ];

    certificates.run(&host, "dashboard", &["status"])?.ok()?;
    let refused = certificates.run(&host, "dashboard", &activate)?;
    assert_eq!(refused.code, 3, "{refused}");
    let who = "the certificate of cn:dashboard, dns:dashboard has the role view";
    assert!(refused.stderr.contains(who), "{refused}");
    assert_eq!(host.cli().pool("web")?.target, 0, "a refusal had an effect");

    let task: Task = certificates
        .run(&host, "scheduler", &activate)?
        .document(0)?;
    assert_eq!(task.state, "done");
    host.assert_serves(&task.instances[0])?;

    // The port comes back with the agent, and says the same.
    host.agent.kill()?;
    let away = certificates.run(&host, "scheduler", &["status"])?;
    assert_eq!(away.code, 7, "{away}");
    host.agent.start(&host.ground)?;
    let again: Task = certificates
        .run(&host, "scheduler", &activate)?
        .document(0)?;
    assert!(again.replayed);
    host.remove_app("web")
}
