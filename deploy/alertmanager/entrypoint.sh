#!/bin/sh
# entrypoint.sh COMMAND...: writes Alertmanager's configuration and becomes the command.
#
# ALERT_WEBHOOK  address that alerts are sent to, as Alertmanager's webhooks are; without it nobody gets any:
#                https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
set -eu

CONFIG=${CONFIG:-/tmp/alertmanager.yml}
case ${ALERT_WEBHOOK:-} in
    "")
        echo "alertmanager: ALERT_WEBHOOK is not set, so alerts are shown here and sent to nobody" >&2
        receivers="[{ name: people }]"
        ;;
    http://?* | https://?*)
        case $ALERT_WEBHOOK in
            *[!A-Za-z0-9:/?\&=%._~#@+,\;!*\(\)\[\]-]*) wrong=yes ;;
        esac
        receivers="[{ name: people, webhook_configs: [{ url: '$ALERT_WEBHOOK', send_resolved: true }] }]"
        ;;
    *) wrong=yes ;;
esac
if [ -n "${wrong:-}" ]; then
    echo "alertmanager: ALERT_WEBHOOK must be an address such as https://example.com/alerts" >&2
    exit 1
fi
umask 077 # such addresses are secret, mostly
cat > "$CONFIG" <<END
route:
  receiver: people
  group_by: [alertname, model] # of many servers with one trouble: one message
  group_wait: 15s
  group_interval: 2m
  repeat_interval: 4h
inhibit_rules: # the same thing, worse
  - source_matchers: [severity = "critical"]
    target_matchers: [severity = "warning"]
    equal: [alertname, instance]
receivers: $receivers
END
unset ALERT_WEBHOOK
exec "$@"
