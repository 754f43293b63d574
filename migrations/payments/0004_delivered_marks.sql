-- While a service sends again, Redis may be lost again. How far delivery had come with each Redis
-- since the first loss: what was published to it before this instant of its clock has arrived, and
-- need not be sent yet another time.
CREATE TABLE delivered_marks (
    service         VARCHAR(100)    NOT NULL,
    stream          VARCHAR(100)    NOT NULL,
    redis_mark      BIGINT UNSIGNED NOT NULL,
    delivered_until DATETIME(6)     NOT NULL,
    PRIMARY KEY (service, stream, redis_mark)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
