#!/bin/bash
# deb.sh: makes dist/argusd_VERSION_ARCH.deb from dist/argusd: both daemons, their units, settings and man pages.
# Needs dpkg-deb and nothing else of Debian's tools.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^__version__.*= "\(.*\)"/\1/p' argusd/__init__.py)
architecture=$(dpkg --print-architecture)
maintainer=$(git log -1 --format='%an <%ae>' 2>/dev/null || echo 'argusd maintainers <root@localhost>')
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}
export SOURCE_DATE_EPOCH
tree=build/deb
doc=$tree/usr/share/doc/argusd

rm -rf $tree
install -D -m 755 dist/argusd $tree/usr/sbin/argusd
ln -s argusd $tree/usr/sbin/janusd
install -D -m 644 -t $tree/lib/systemd/system packaging/debian/argusd.service packaging/debian/janusd.service
install -D -m 644 packaging/debian/default $tree/etc/default/argusd
for page in argusd janusd; do
    install -d $tree/usr/share/man/man8
    sed "s/@VERSION@/$version/" packaging/debian/$page.8 | gzip -9n >$tree/usr/share/man/man8/$page.8.gz
done
install -D -m 644 LICENSE $doc/copyright
# The parts inside the program are not those of the system: their licences come with it.
cp -R build/licenses/. $doc/licenses
printf 'argusd (%s) unstable; urgency=medium\n\n  * See CHANGELOG.gz.\n\n -- %s  %s\n' "$version" "$maintainer" \
    "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >$doc/changelog.gz
gzip -9n <CHANGELOG.md >$doc/CHANGELOG.gz
find $tree -type d -exec chmod 755 {} +
find $doc -type f -exec chmod 644 {} +

install -d $tree/DEBIAN
cat >$tree/DEBIAN/control <<CONTROL
Package: argusd
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $(du -sk --exclude=DEBIAN $tree | cut -f 1)
Section: admin
Priority: optional
Description: file-integrity agent for containers
 argusd reports what happens to files inside containers, janusd allows or
 denies the use of files there. Both run once on a node, and are told over
 gRPC what to watch and what to guard. They use inotify and fanotify, and need
 neither a runtime's socket nor anything in the containers.
CONTROL
echo /etc/default/argusd >$tree/DEBIAN/conffiles
# Neither service is started by the installation: what it may listen to has to be said first.
install -m 755 packaging/debian/postinst packaging/debian/prerm packaging/debian/postrm $tree/DEBIAN/
(cd $tree && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
chmod 644 $tree/DEBIAN/md5sums $tree/DEBIAN/conffiles $tree/DEBIAN/control
mkdir -p dist
dpkg-deb --root-owner-group -Zxz --build $tree "dist/argusd_${version}_$architecture.deb" >/dev/null
du -h --apparent-size "dist/argusd_${version}_$architecture.deb"
