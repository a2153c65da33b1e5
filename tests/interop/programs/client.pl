# The ways of Perl to the network: `client.pl socket|tiny HOST PORT`.
use strict;
use warnings;
use HTTP::Tiny;
use IO::Socket::INET;

my ($way, $host, $port) = @ARGV;
my $literal = $host =~ /:/ ? "[$host]" : $host;

if ($way eq 'tiny') {
    my $response = HTTP::Tiny->new->get("http://$literal:$port/whoami");
    print $response->{content};
    exit($response->{success} ? 0 : 1);
}

my $socket = IO::Socket::INET->new(PeerAddr => $host, PeerPort => $port, Proto => 'tcp');
if (!$socket) {
    print "$!\n";
    exit 1;
}
printf "peer %s %d\n", $socket->peerhost, $socket->peerport;
print $socket "GET /whoami HTTP/1.0\r\nHost: interop\r\n\r\n";
local $/;
my ($head, $body) = split /\r\n\r\n/, <$socket> // '', 2;
defined $body or die "no answer: $!\n";
print $body;
