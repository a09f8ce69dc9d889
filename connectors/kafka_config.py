"""The text of the embedded broker's configuration files."""

MESSAGE_MAX_BYTES = 8 * 1024 * 1024
WEEK_MS = 7 * 24 * 3600 * 1000
RETENTION_MS = 8 * 24 * 3600 * 1000
"""Default of topics that name none: a day more than the dedupe horizon of 7 days."""


def server_properties(*, port: int, controller_port: int, advertised_port: int | None = None) -> str:
    """One KRaft node, broker and controller in one, on loopback only.

    `advertised_port`: where clients are told to connect, if not to `port` itself: of a forwarder in front of the broker.

    The two internal topics get few partitions: each costs files and start-up time, and one node has nothing to spread.
    """
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{advertised_port or port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        # Relative to the broker's folder, which it runs in: Kafka would split a path at a comma.
        "log.dirs": "logs",
        "auto.create.topics.enable": "false",
        "num.partitions": "4",
        "default.replication.factor": "1",
        "min.insync.replicas": "1",
        "offsets.topic.num.partitions": "8",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "2",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        # Committed offsets must outlive a stop of the whole stack over the dedupe horizon.
        "offsets.retention.minutes": str(30 * 24 * 60),
        "message.max.bytes": str(MESSAGE_MAX_BYTES),
        "replica.fetch.max.bytes": str(MESSAGE_MAX_BYTES),
        "log.retention.ms": str(RETENTION_MS),
        "log.segment.bytes": str(256 * 1024 * 1024),
        "log.cleaner.dedupe.buffer.size": str(32 * 1024 * 1024),
        "num.network.threads": "2",
        "num.io.threads": "4",
        "num.recovery.threads.per.data.dir": "2",
        "background.threads": "4",
        # After a kill -9 the controller, which died with it, still waits for the old session to end before the broker may register again.
        "broker.session.timeout.ms": "4000",
        "broker.heartbeat.interval.ms": "500",
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def log4j_properties() -> str:
    """Log to a file that is bounded: 4 files of 10 MB. The path comes from the system property `kafka.log.file`."""
    return (
        "status = error\n"
        "rootLogger.level = info\n"
        "rootLogger.appenderRef.file.ref = file\n"
        "appender.file.type = RollingFile\n"
        "appender.file.name = file\n"
        "appender.file.fileName = ${sys:kafka.log.file}\n"
        "appender.file.filePattern = ${sys:kafka.log.file}.%i\n"
        "appender.file.layout.type = PatternLayout\n"
        "appender.file.layout.pattern = %d{ISO8601} %p %m (%c{1})%n%throwable\n"
        "appender.file.policies.type = Policies\n"
        "appender.file.policies.size.type = SizeBasedTriggeringPolicy\n"
        "appender.file.policies.size.size = 10MB\n"
        "appender.file.strategy.type = DefaultRolloverStrategy\n"
        "appender.file.strategy.max = 3\n"
        "logger.config.name = org.apache.kafka.common.config\n"  # hundreds of lines of settings at every start
        "logger.config.level = warn\n"
    )
